// A retry schedule as a time line: when each attempt is, counted from the first one. The line's scale is logarithmic.

import { readDuration } from "../format/time";
import { span, t } from "../text/text";

export function Schedule(props: { waits: readonly string[] }) {
  const lengths = props.waits.map(readDuration);
  if (lengths.some(Number.isNaN)) return <p class="wrong-text">{t.noDuration}</p>;
  let at = 0;
  const times = [0, ...lengths.map((length) => (at += length))];
  const place = (ms: number) => 20 + (960 * Math.log1p(ms / 1000)) / Math.max(1e-9, Math.log1p(at / 1000));
  return (
    <figure class="schedule">
      <svg viewBox="0 0 1000 30" role="img" aria-label={t.edit.scheduleSummary(times.length, span(at))}>
        <line x1="20" x2="980" y1="15" y2="15" />
        {times.map((time, i) => (
          <circle key={i} cx={place(time)} cy="15" r="6">
            <title>{`${t.delivery.attempt(i + 1)}: ${span(time)}`}</title>
          </circle>
        ))}
      </svg>
      <figcaption>
        {t.edit.scheduleSummary(times.length, span(at))}{" "}
        <span class="faint">{times.slice(1).map((time) => `+${span(time)}`).join(", ")}</span>
      </figcaption>
    </figure>
  );
}
