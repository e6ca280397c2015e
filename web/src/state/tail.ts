// What a tail shows: rows that came while it was looked at, the newest last. Pure.
//
// 1. While it follows, rows are appended, and the oldest go. While it is paused, what is shown does not change: rows wait.
// 2. Both are bounded. What had no room is counted, and said where it is missing.

export const MOST = 500;

export interface TailItem<T> {
  n: number; // of all that this tail has taken: its key
  row: T | null; // null: something is missing here
  missing: number; // rows; 0 where nobody knows how many
}

export interface Tail<T> {
  items: readonly TailItem<T>[];
  waiting: readonly TailItem<T>[];
  dropped: number; // of those that waited
  next: number;
}

export const emptyTail = <T>(): Tail<T> => ({ items: [], waiting: [], dropped: 0, next: 0 });

const last = <T>(items: readonly T[], most: number): readonly T[] => (items.length > most ? items.slice(items.length - most) : items);

/** With rows more, the oldest of them first. `missing`: so many before them are not known; below zero nobody knows how many. */
export function taken<T>(tail: Tail<T>, rows: readonly T[], following: boolean, missing = 0, most = MOST): Tail<T> {
  const items: TailItem<T>[] = missing !== 0 ? [{ n: tail.next, row: null, missing: Math.max(0, missing) }] : [];
  for (const row of rows) items.push({ n: tail.next + items.length, row, missing: 0 });
  const next = tail.next + items.length;
  if (following) return { ...tail, items: last([...tail.items, ...items], most), next };
  const all = [...tail.waiting, ...items];
  return { ...tail, waiting: last(all, most), dropped: tail.dropped + Math.max(0, all.length - most), next };
}

/** A time in which nothing was heard: how much is missing nobody knows. Two after each other are one. */
export function interrupted<T>(tail: Tail<T>, following: boolean): Tail<T> {
  const end = tail.waiting[tail.waiting.length - 1] ?? tail.items[tail.items.length - 1];
  if (end === undefined || (end.row === null && end.missing === 0)) return tail;
  const item: TailItem<T> = { n: tail.next, row: null, missing: 0 };
  const next = tail.next + 1;
  return following ? { ...tail, items: last([...tail.items, item], MOST), next } : { ...tail, waiting: last([...tail.waiting, item], MOST), next };
}

/** What waited is shown. */
export function followed<T>(tail: Tail<T>, most = MOST): Tail<T> {
  if (tail.waiting.length === 0 && tail.dropped === 0) return tail;
  const hole: TailItem<T>[] = tail.dropped > 0 ? [{ n: tail.next, row: null, missing: tail.dropped }] : [];
  return { items: last([...tail.items, ...hole, ...tail.waiting], most), waiting: [], dropped: 0, next: tail.next + hole.length };
}

/** How many rows wait. */
export function waitingRows<T>(tail: Tail<T>): number {
  return tail.dropped + tail.waiting.reduce((sum, each) => sum + (each.row === null ? each.missing : 1), 0);
}
