// Times in the reader's zone. All functions are pure: the zone and the present are arguments.

const formats = new Map<string, Intl.DateTimeFormat>();

function parts(ms: number, zone: string): number[] {
  let format = formats.get(zone);
  if (format === undefined) {
    format = new Intl.DateTimeFormat("en-US-u-ca-gregory-nu-latn", {
      timeZone: zone,
      hourCycle: "h23",
      year: "numeric",
      month: "2-digit",
      day: "2-digit",
      hour: "2-digit",
      minute: "2-digit",
      second: "2-digit",
    });
    formats.set(zone, format);
  }
  const found: Record<string, number> = {};
  for (const part of format.formatToParts(ms)) found[part.type] = Number(part.value);
  return [found["year"]!, found["month"]!, found["day"]!, found["hour"]!, found["minute"]!, found["second"]!];
}

/** How far the zone's clock is ahead of UTC at this instant, in minutes. */
export function offsetAt(ms: number, zone: string): number {
  const [year, month, day, hour, minute, second] = parts(ms, zone) as [number, number, number, number, number, number];
  const wall = Date.UTC(year, month - 1, day, hour, minute, second);
  return Math.round((wall - Math.floor(ms / 1000) * 1000) / 60_000);
}

const two = (n: number) => String(n).padStart(2, "0");

/** `+02:00`; `Z` for none. */
export function offsetText(minutes: number): string {
  if (minutes === 0) return "Z";
  const size = Math.abs(minutes);
  return `${minutes < 0 ? "-" : "+"}${two(Math.floor(size / 60))}:${two(size % 60)}`;
}

/** Whether the zone's clock shows this time twice: in the night when it is put back. */
export function isAmbiguous(ms: number, zone: string): boolean {
  const own = offsetAt(ms, zone);
  for (const minutes of [30, 60, 120]) {
    for (const other of [ms - minutes * 60_000, ms + minutes * 60_000]) {
      const there = offsetAt(other, zone);
      if (there !== own && other + there * 60_000 === ms + own * 60_000) return true;
    }
  }
  return false;
}

export type Precision = "minute" | "second" | "millisecond";

/** `2026-10-25 02:30:00`, with the offset where the clock shows it twice. */
export function timeText(ms: number, zone: string, precision: Precision = "second"): string {
  const [year, month, day, hour, minute, second] = parts(ms, zone) as [number, number, number, number, number, number];
  let text = `${String(year).padStart(4, "0")}-${two(month)}-${two(day)} ${two(hour)}:${two(minute)}`;
  if (precision !== "minute") text += `:${two(second)}`;
  if (precision === "millisecond") text += `.${String(((ms % 1000) + 1000) % 1000).padStart(3, "0")}`;
  return isAmbiguous(ms, zone) ? `${text} ${offsetText(offsetAt(ms, zone))}` : text;
}

/** RFC 3339 in UTC: `2026-10-25T00:30:00.123Z`, without a fraction where it is zero. */
export function utcText(ms: number): string {
  return new Date(ms).toISOString().replace(".000Z", "Z");
}

const WALL = /^(\d{4})-(\d{2})-(\d{2})(?:[ T](\d{2}):(\d{2})(?::(\d{2})(?:\.(\d{1,3}))?)?)?\s*(Z|[+-]\d{2}:\d{2})?$/;

/** The instant that a reader means: a time of the zone, or with an offset. Of a time that comes twice the earlier; one that is left out is moved on. NaN where it is no time. */
export function readTime(text: string, zone: string): number {
  const found = WALL.exec(text.trim());
  if (found === null) return Number.NaN;
  const [year, month, day, hour, minute, second] = found.slice(1, 7).map((each) => Number(each ?? 0)) as [number, number, number, number, number, number];
  const wall = Date.UTC(year, month - 1, day, hour, minute, second, Number((found[7] ?? "0").padEnd(3, "0")));
  const shown = new Date(wall);
  if (shown.getUTCMonth() !== month - 1 || shown.getUTCDate() !== day || hour > 23 || minute > 59 || second > 59) return Number.NaN;
  const offset = found[8];
  if (offset === "Z") return wall;
  if (offset !== undefined) {
    const minutes = Number(offset.slice(1, 3)) * 60 + Number(offset.slice(4, 6));
    return wall - (offset.startsWith("-") ? -minutes : minutes) * 60_000;
  }
  const candidates = [offsetAt(wall - 86_400_000, zone), offsetAt(wall + 86_400_000, zone)].map((minutes) => wall - minutes * 60_000);
  const right = candidates.filter((instant) => instant + offsetAt(instant, zone) * 60_000 === wall);
  // The clock is put forward over this time: both guesses miss it, and the one by the offset before lands as far behind the gap.
  return right.length > 0 ? Math.min(...right) : candidates[0]!;
}

/** Milliseconds of an RFC 3339 time, or null. */
export function instant(text: string | null | undefined): number | null {
  if (!text) return null;
  const ms = Date.parse(text);
  return Number.isNaN(ms) ? null : ms;
}

const UNITS = [
  ["d", 86_400_000],
  ["h", 3_600_000],
  ["m", 60_000],
  ["s", 1000],
] as const;

/** A duration in at most two units: `1h 5m`, `12.5s`, `340ms`. */
export function durationText(ms: number): string {
  const size = Math.abs(ms);
  if (size < 1000) return `${Math.round(size)} ms`;
  if (size < 60_000) return `${(size / 1000).toFixed(size < 10_000 ? 2 : 1).replace(/\.?0+$/, "")} s`;
  const whole = Math.round(size / 1000) * 1000;
  for (let i = 0; i < UNITS.length; i += 1) {
    const [name, length] = UNITS[i]!;
    if (whole < length) continue;
    const next = UNITS[i + 1];
    const rest = next ? Math.floor((whole % length) / next[1]) : 0;
    return `${Math.floor(whole / length)} ${name}${rest > 0 ? ` ${rest} ${next![0]}` : ""}`.replace(/\bm\b/g, "min");
  }
  return `${Math.round(size)} ms`;
}

/** Milliseconds of a duration as the settings write it: `500ms`, `1h30m`. NaN where it is none. */
export function readDuration(text: string): number {
  const trimmed = text.trim();
  if (!/^(\d+(\.\d+)?(ms|s|m|h|d))+$/.test(trimmed)) return Number.NaN;
  let sum = 0;
  for (const [, size, unit] of trimmed.matchAll(/(\d+(?:\.\d+)?)(ms|s|m|h|d)/g)) {
    sum += Number(size) * (unit === "ms" ? 1 : UNITS.find(([name]) => name === unit)![1]);
  }
  return sum;
}
