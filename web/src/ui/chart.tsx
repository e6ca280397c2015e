// A chart over time: stacked areas or lines, hover, a range that is dragged becomes the page's range. Its table is below it.

import { useEffect, useRef, useState } from "preact/hooks";
import type uPlot from "uplot";
import { shortText } from "../format/numbers";
import { timeText, utcText } from "../format/time";
import { changed, go } from "../state/place";
import { preferences, zoneName } from "../state/preferences";
import { t } from "../text/text";

export interface Line {
  name: string;
  colour: "good" | "bad" | "warn" | "info" | "calm" | "accent" | "violet";
  values: (number | null)[];
}

interface ChartProps {
  title: string;
  times: number[]; // Unix milliseconds
  lines: Line[];
  stacked?: boolean;
  text: (value: number) => string;
  axis?: (value: number) => string;
  fixed?: boolean; // its times are not the page's: nothing is selected in it
}

const HEIGHT = 180; // pixels

// What draws is fetched with the first chart: a page can be used before it is there.
let plotter: typeof uPlot | undefined;

/** It, once it is there. Where it can't be fetched the tables below the charts are. */
function usePlotter(): typeof uPlot | undefined {
  const [found, setFound] = useState(() => plotter);
  useEffect(() => {
    if (found) return;
    let gone = false;
    import("uplot").then(
      (module) => {
        plotter = module.default;
        if (!gone) setFound(() => module.default);
      },
      () => {},
    );
    return () => {
      gone = true;
    };
  }, []);
  return found;
}

// The tokens are `light-dark()` pairs: only an element's colour says which of the two is in force.
function resolved(probe: HTMLElement, value: string): string {
  probe.style.color = value;
  return getComputedStyle(probe).color;
}

export function Chart(props: ChartProps) {
  const box = useRef<HTMLDivElement>(null);
  const probe = useRef<HTMLSpanElement>(null);
  const [open, setOpen] = useState(false);
  const [theme, setTheme] = useState(0);
  const chosen = preferences.use();
  const Plot = usePlotter();

  useEffect(() => {
    const query = matchMedia("(prefers-color-scheme: dark)");
    const turn = () => setTheme((n) => n + 1);
    query.addEventListener("change", turn);
    return () => query.removeEventListener("change", turn);
  }, []);

  useEffect(() => {
    const element = box.current;
    if (!Plot || !element || !probe.current || props.times.length === 0) return;
    const paint = (value: string) => resolved(probe.current!, value);
    const ink = paint("var(--faint)");
    const grid = paint("var(--line)");
    const zone = zoneName();
    const data = stack(props);
    const options: uPlot.Options = {
      width: Math.max(200, element.clientWidth),
      height: HEIGHT,
      legend: { show: false },
      cursor: { y: false, drag: { x: !props.fixed, y: false, setScale: false } },
      scales: { x: { time: true }, y: { range: (_, __, max) => [0, max > 0 ? max * 1.08 : 1] } },
      axes: [
        {
          stroke: ink,
          grid: { stroke: grid, width: 1 },
          ticks: { stroke: grid, width: 1 },
          values: (_, splits) => axisTimes(splits, zone),
          space: 70,
        },
        { stroke: ink, grid: { stroke: grid, width: 1 }, ticks: { stroke: grid, width: 1 }, size: 64, values: (_, splits) => splits.map((value) => (props.axis ?? shortText)(value)) },
      ],
      series: [
        {},
        ...data.order.map((at) => {
          const line = props.lines[at]!;
          const colour = paint(`var(--plot-${line.colour})`);
          return props.stacked ? { label: line.name, stroke: colour, fill: paint(`color-mix(in srgb, var(--plot-${line.colour}) 72%, var(--surface))`), width: 1, points: { show: false } } : { label: line.name, stroke: colour, width: 1.75, points: { show: line.values.filter((value) => value !== null).length < 3 } };
        }),
      ],
      hooks: {
        setCursor: [(plot) => hover(plot, element, props, zone)],
        setSelect: [
          (plot) => {
            if (plot.select.width < 4) return;
            const since = plot.posToVal(plot.select.left, "x") * 1000;
            const until = plot.posToVal(plot.select.left + plot.select.width, "x") * 1000;
            if (until - since >= 1000) go(changed({ since: utcText(Math.floor(since / 1000) * 1000), until: utcText(Math.ceil(until / 1000) * 1000), cursor: null }));
          },
        ],
      },
    };
    const plot = new Plot(options, data.rows as uPlot.AlignedData, element);
    const watch = new ResizeObserver(() => plot.setSize({ width: Math.max(200, element.clientWidth), height: HEIGHT }));
    watch.observe(element);
    return () => {
      watch.disconnect();
      plot.destroy();
    };
  }, [props.times, props.lines, chosen, theme, Plot]);

  if (props.times.length === 0) return <p class="faint">{t.chart.empty}</p>;
  return (
    <figure class="chart">
      <figcaption>
        <span class="strong">{props.title}</span>
        <span class="legend">
          {props.lines.map((line) => (
            <span key={line.name}>
              <i class={`swatch ${line.colour}`} />
              {line.name}
            </span>
          ))}
        </span>
      </figcaption>
      <div class="plot" ref={box} role="img" aria-label={`${props.title}: ${summary(props)}`}>
        <span ref={probe} class="offscreen" />
        <div class="tip" hidden />
      </div>
      <details onToggle={(event) => setOpen(event.currentTarget.open)}>
        <summary>{t.chart.table}</summary>
        {open ? <ChartTable {...props} /> : null}
      </details>
    </figure>
  );
}

function ChartTable(props: ChartProps) {
  const zone = zoneName();
  return (
    <div class="table scroll" tabIndex={0} role="region" aria-label={props.title}>
      <table>
        <caption class="offscreen">{props.title}</caption>
        <thead>
          <tr>
            <th scope="col">{t.columns.time}</th>
            {props.lines.map((line) => (
              <th key={line.name} scope="col" class="right">
                {line.name}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {props.times.map((time, at) => (
            <tr key={time}>
              <td>{timeText(time, zone)}</td>
              {props.lines.map((line) => (
                <td key={line.name} class="right">
                  {line.values[at] === null || line.values[at] === undefined ? "–" : props.text(line.values[at])}
                </td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

function summary(props: ChartProps): string {
  return props.lines
    .map((line) => {
      const known = line.values.filter((value): value is number => value !== null);
      if (known.length === 0) return `${line.name} –`;
      return t.chart.summary(line.name, props.text(Math.min(...known)), props.text(Math.max(...known)), props.text(known[known.length - 1]!));
    })
    .join("; ");
}

/** Rows for uPlot: of a stack the sums, the largest first so that it lies behind the others. */
function stack(props: ChartProps): { rows: (number | null)[][]; order: number[] } {
  const times = props.times.map((ms) => ms / 1000);
  const order = props.lines.map((_, at) => at);
  if (!props.stacked) return { rows: [times, ...props.lines.map((line) => line.values)], order };
  const sums = new Array<number>(times.length).fill(0);
  const rows = props.lines.map((line) => line.values.map((value, at) => (sums[at] = (sums[at] ?? 0) + (value ?? 0))));
  return { rows: [times, ...rows.reverse()], order: order.reverse() };
}

function axisTimes(splits: number[], zone: string): string[] {
  let day = "";
  return splits.map((seconds) => {
    const text = timeText(seconds * 1000, zone, "minute");
    const own = text.slice(5, 10);
    const clock = text.slice(11, 16);
    const first = own !== day;
    day = own;
    return first ? `${clock}\n${own}` : clock;
  });
}

function hover(plot: uPlot, box: HTMLElement, props: ChartProps, zone: string): void {
  const tip = box.querySelector<HTMLElement>(".tip");
  const at = plot.cursor.idx;
  if (!tip) return;
  const time = at === null || at === undefined ? undefined : props.times[at];
  if (time === undefined || plot.cursor.left === undefined || plot.cursor.left < 0) {
    tip.hidden = true;
    return;
  }
  tip.hidden = false;
  const rows = props.lines.map((line) => {
    const row = document.createElement("div");
    const swatch = document.createElement("i");
    swatch.className = `swatch ${line.colour}`;
    const value = line.values[at!];
    row.append(swatch, `${line.name} ${value === null || value === undefined ? "–" : props.text(value)}`);
    return row;
  });
  const head = document.createElement("div");
  head.className = "strong";
  head.textContent = timeText(time, zone);
  tip.replaceChildren(head, ...rows);
  const left = plot.cursor.left + plot.bbox.left / devicePixelRatio;
  const space = box.clientWidth - tip.offsetWidth - 8;
  tip.style.left = `${Math.max(0, Math.min(left + 12, left + 12 > space ? left - tip.offsetWidth - 12 : space))}px`;
}

/** A small line beside a number, without axes. Its numbers are in the table that it stands in. */
export function Sparkline(props: { values: readonly number[]; bad?: readonly number[]; label: string }) {
  const top = Math.max(1, ...props.values);
  const width = 80;
  const step = width / Math.max(1, props.values.length);
  const path = (values: readonly number[]) => values.map((value, at) => (value > 0 ? `M${(at * step).toFixed(1)} 20h${(step * 0.8).toFixed(1)}v${((-value / top) * 19).toFixed(1)}h${(-step * 0.8).toFixed(1)}z` : "")).join("");
  return (
    <svg class="spark" viewBox={`0 0 ${width} 20`} role="img" aria-label={props.label} preserveAspectRatio="none">
      <path class="all" d={path(props.values)} />
      {props.bad ? <path class="bad" d={path(props.bad)} /> : null}
    </svg>
  );
}

