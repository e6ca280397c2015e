// What the processes say of themselves, kept while the application is open: the API has it for now only.

import { lagOf } from "./figures";
import { store } from "./store";

export interface Sample {
  at: number; // Unix milliseconds
  lag: number; // records of event topics that are not taken up
  parked: Record<string, number>; // deliveries that are set aside, by why
}

const KEPT = 720; // an hour of looks every five seconds

export const samples = store<readonly Sample[]>([]);

interface Said {
  lag: Readonly<Record<string, number>>;
  parked: Readonly<Record<string, number>>;
}

/** All processes together. */
export function sampleOf(replicas: readonly Said[], at: number): Sample {
  const parked: Record<string, number> = {};
  for (const each of replicas) for (const [name, count] of Object.entries(each.parked)) parked[name] = (parked[name] ?? 0) + count;
  return { at, lag: replicas.reduce((sum, each) => sum + lagOf(each.lag), 0), parked };
}

/** With a look more; one that is kept already is none. */
export function sampled(kept: readonly Sample[], sample: Sample, most = KEPT): readonly Sample[] {
  const end = kept[kept.length - 1];
  if (end && end.at >= sample.at) return kept;
  return [...kept, sample].slice(-most);
}

/** Why something was set aside in this time, what there was most of first. */
export function causesOf(kept: readonly Sample[]): string[] {
  const most = new Map<string, number>();
  for (const each of kept) for (const [name, count] of Object.entries(each.parked)) if (count > 0) most.set(name, Math.max(count, most.get(name) ?? 0));
  return [...most].sort((one, other) => other[1] - one[1]).map(([name]) => name);
}
