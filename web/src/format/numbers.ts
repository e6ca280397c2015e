// Numbers for people. Counts are shown exactly, in groups of three; only axes are short.

/** An integer exactly, also one that came as text because a double can't hold it. */
export function countText(value: number | string | bigint, language: string): string {
  const whole = typeof value === "bigint" ? value : typeof value === "string" ? (/^-?\d+$/.test(value) ? BigInt(value) : null) : Number.isSafeInteger(value) ? BigInt(value) : null;
  return whole === null ? String(value) : whole.toLocaleString(language);
}

/** A rate: three significant digits at the most. */
export function rateText(value: number, language: string): string {
  if (value === 0) return "0";
  return value.toLocaleString(language, value >= 100 ? { maximumFractionDigits: 0 } : { maximumSignificantDigits: 3 });
}

/** A share of 1 in per cent. Only what is whole is shown as 0 or 100. */
export function percentText(share: number, language: string): string {
  const percent = share * 100;
  const digits = percent > 99 && percent < 100 ? 3 : percent > 0 && percent < 1 ? 3 : percent < 10 || percent > 90 ? 1 : 0;
  const scale = 10 ** digits;
  let shown = Math.round(percent * scale) / scale;
  if (shown === 100 && share < 1) shown = 100 - 1 / scale;
  if (shown === 0 && share > 0) shown = 1 / scale;
  return `${shown.toLocaleString(language, { maximumFractionDigits: digits })} %`;
}

export function bytesText(bytes: number, language: string): string {
  if (bytes < 1024) return `${bytes} B`;
  const units = ["KiB", "MiB", "GiB", "TiB"];
  let size = bytes / 1024;
  let unit = 0;
  while (size >= 1024 && unit < units.length - 1) {
    size /= 1024;
    unit += 1;
  }
  return `${size.toLocaleString(language, { maximumSignificantDigits: 3 })} ${units[unit]}`;
}

/** For axes: `1.2k`, `3M`. */
export function shortText(value: number): string {
  const size = Math.abs(value);
  if (size >= 1e9) return `${trim(value / 1e9)}G`;
  if (size >= 1e6) return `${trim(value / 1e6)}M`;
  if (size >= 1e4) return `${trim(value / 1e3)}k`;
  return trim(value);
}

const trim = (value: number) => String(Number(value.toPrecision(3)));
