import { expect, test } from "vitest";
import { emptyTail, followed, interrupted, taken, waitingRows, type Tail } from "../src/state/tail";

const shown = (tail: Tail<string>) => tail.items.map((each) => each.row ?? (each.missing > 0 ? each.missing : "?"));
const keys = (tail: Tail<string>) => tail.items.map((each) => each.n);

test("while it follows rows are appended, and no more than so many are kept", () => {
  let tail = taken(emptyTail<string>(), ["a", "b"], true, 0, 3);
  tail = taken(tail, ["c", "d"], true, 0, 3);
  expect(shown(tail)).toEqual(["b", "c", "d"]);
  expect(keys(tail)).toEqual([1, 2, 3]);
});

test("while it is paused nothing that is shown changes, and what comes waits in its order", () => {
  let tail = taken(emptyTail<string>(), ["a"], true);
  const before = tail.items;
  tail = taken(tail, ["b"], false);
  tail = taken(tail, ["c"], false);
  expect(tail.items).toBe(before);
  expect(waitingRows(tail)).toBe(2);
  tail = followed(tail);
  expect(shown(tail)).toEqual(["a", "b", "c"]);
  expect(waitingRows(tail)).toBe(0);
  expect(followed(tail)).toBe(tail);
  expect(new Set(keys(tail)).size).toBe(3);
});

test("what waits is bounded, and what had no room is told of where it is missing", () => {
  let tail = taken(emptyTail<string>(), ["a"], true, 0, 3);
  for (const row of ["b", "c", "d", "e", "f"]) tail = taken(tail, [row], false, 0, 3);
  expect(tail.waiting).toHaveLength(3);
  expect(waitingRows(tail)).toBe(5);
  tail = followed(tail, 5);
  expect(shown(tail)).toEqual(["a", 2, "d", "e", "f"]);
  expect(new Set(keys(tail)).size).toBe(5);
});

test("rows that the stream left out are told of before those that came with them", () => {
  let tail = taken(emptyTail<string>(), ["a"], true, 7);
  expect(shown(tail)).toEqual([7, "a"]);
  tail = taken(tail, ["b"], true, -1);
  expect(shown(tail)).toEqual([7, "a", "?", "b"]);
  tail = taken(tail, ["c"], false, 4);
  expect(waitingRows(tail)).toBe(5);
});

test("a silence is told of once, and not before anything has come", () => {
  expect(interrupted(emptyTail<string>(), true).items).toEqual([]);
  let tail = taken(emptyTail<string>(), ["a"], true);
  tail = interrupted(interrupted(tail, true), true);
  expect(shown(tail)).toEqual(["a", "?"]);
  tail = taken(tail, ["b"], false);
  tail = interrupted(tail, false);
  expect(shown(tail)).toEqual(["a", "?"]);
  expect(shown(followed(tail))).toEqual(["a", "?", "b", "?"]);
});
