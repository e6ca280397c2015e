// Statistics as charts need them: steps in which nothing happened have no point in the answer, and are zero here.

import type { Figures, Series, Statistics } from "../api/types";

const STEPS = { minute: 60_000, hour: 3_600_000, day: 86_400_000 } as const;

/** The beginnings of all steps of the answer, in Unix milliseconds. */
export function stepTimes(answer: Pick<Statistics, "since" | "until" | "step">): number[] {
  const step = STEPS[answer.step];
  const times: number[] = [];
  for (let at = Math.floor(Date.parse(answer.since ?? "") / step) * step; at < Date.parse(answer.until ?? "") && times.length < 2000; at += step) times.push(at);
  return times;
}

/** One value for each time. */
export function values(series: Series | undefined, times: readonly number[], of: (figures: Figures) => number | null, none: number | null = 0): (number | null)[] {
  const found = new Map<number, number | null>();
  for (const point of series?.points ?? []) found.set(Date.parse(point.time ?? ""), of(point));
  return times.map((time) => (found.has(time) ? found.get(time)! : none));
}

/** For how many seconds the answer counts: the last step may not be over. */
export function secondsOf(answer: Pick<Statistics, "since" | "until">, now: number): number {
  return Math.max(1, (Math.min(now, Date.parse(answer.until ?? "")) - Date.parse(answer.since ?? "")) / 1000);
}

/** Records of the event topics that are not taken up yet. What lies in retry topics waits for its time or its endpoint. */
export function lagOf(lag: Readonly<Record<string, number>>): number {
  return Object.entries(lag).reduce((sum, [topic, records]) => (/\.retry\.[^.]+$|\.replay$/.test(topic) ? sum : sum + records), 0);
}

export const FAILURE_CLASSES = ["3xx", "4xx", "5xx", "timeout", "connect", "dns", "tls", "other"] as const;
