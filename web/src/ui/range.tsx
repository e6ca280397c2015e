// The time range of a page. It is absolute in the address, so that a link shows the same rows to everybody.

import { useState } from "preact/hooks";
import { readTime, timeText, utcText } from "../format/time";
import { rangeOf } from "../state/filters";
import { changed, go, place } from "../state/place";
import { zoneName } from "../state/preferences";
import { span, t } from "../text/text";
import { Button, Time } from "./bits";
import { Dialog } from "./dialog";
import { Input } from "./form";

const PRESETS: [string, number][] = [
  ["15m", 900_000],
  ["1h", 3_600_000],
  ["6h", 21_600_000],
  ["24h", 86_400_000],
  ["7d", 604_800_000],
  ["30d", 2_592_000_000],
];

export function RangePicker(props: { length?: number }) {
  const { query } = place.use();
  const [open, setOpen] = useState(false);
  const now = Date.now();
  const range = rangeOf(query, now, props.length);
  const until = range.until ?? now;
  return (
    <>
      <div class="range" role="group" aria-label={t.range.title}>
        <Button kind="small" data-key="t" onClick={() => setOpen(true)}>
          <Time at={range.since} precision="minute" /> – {range.until === null ? t.range.now : <Time at={range.until} precision="minute" />}
        </Button>
        <a class="button small" href={changed({ since: utcText(range.since - (until - range.since)), until: utcText(range.since), cursor: null })} aria-label={t.range.before} title={t.range.before}>
          ‹
        </a>
        {range.until !== null && range.until < now ? (
          <a class="button small" href={changed({ since: utcText(range.until), until: utcText(Math.min(now, range.until + (until - range.since))), cursor: null })} aria-label={t.range.after} title={t.range.after}>
            ›
          </a>
        ) : null}
      </div>
      {open ? <RangeDialog close={() => setOpen(false)} since={range.since} until={range.until} /> : null}
    </>
  );
}

function RangeDialog(props: { close: () => void; since: number; until: number | null }) {
  const zone = zoneName();
  const [since, setSince] = useState(timeText(props.since, zone));
  const [until, setUntil] = useState(props.until === null ? "" : timeText(props.until, zone));
  const from = readTime(since, zone);
  const end = until.trim() === "" ? null : readTime(until, zone);
  const wrongFrom = Number.isNaN(from) ? t.range.noTime : undefined;
  const wrongEnd = end !== null && Number.isNaN(end) ? t.range.noTime : end !== null && end <= from ? t.range.order : undefined;
  return (
    <Dialog title={t.range.title} close={props.close}>
      <div class="presets">
        {PRESETS.map(([name, length]) => (
          <Button
            key={name}
            kind="small"
            onClick={() => {
              go(changed({ since: utcText(Date.now() - length), until: null, cursor: null }));
              props.close();
            }}
          >
            {t.range.last(span(length))}
          </Button>
        ))}
      </div>
      <form
        onSubmit={(event) => {
          event.preventDefault();
          if (wrongFrom || wrongEnd) return;
          go(changed({ since: utcText(from), until: end === null ? null : utcText(end), cursor: null }));
          props.close();
        }}
      >
        <Input label={t.range.since} value={since} set={setSince} wrong={wrongFrom} help={t.range.zone(zone)} />
        <Input label={t.range.until} value={until} set={setUntil} wrong={wrongEnd} help={t.range.open} />
        <div class="actions end">
          <Button onClick={props.close}>{t.cancel}</Button>
          <Button type="submit" kind="main">
            {t.apply}
          </Button>
        </div>
      </form>
    </Dialog>
  );
}
