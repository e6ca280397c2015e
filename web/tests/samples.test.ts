import { expect, test } from "vitest";
import { causesOf, sampled, sampleOf, type Sample } from "../src/state/samples";

const sample = (at: number, parked: Record<string, number> = {}): Sample => ({ at, lag: 0, parked });

test("what the processes say is added up, and retry topics are no lag", () => {
  const replicas = [
    { lag: { events: 3, "dispatcher.retry.10m": 50 }, parked: { breaker: 2 } },
    { lag: { events: 4 }, parked: { breaker: 1, paused: 5 } },
  ];
  expect(sampleOf(replicas, 7)).toEqual({ at: 7, lag: 7, parked: { breaker: 3, paused: 5 } });
  expect(sampleOf([], 7)).toEqual({ at: 7, lag: 0, parked: {} });
});

test("a look is kept once, and no more than so many of them", () => {
  let kept: readonly Sample[] = [];
  for (const at of [1, 1, 2, 3, 3, 4]) kept = sampled(kept, sample(at), 3);
  expect(kept.map((each) => each.at)).toEqual([2, 3, 4]);
});

test("causes come with what there was most of first", () => {
  expect(causesOf([sample(1, { paused: 2, cap: 0 }), sample(2, { breaker: 9, paused: 3 })])).toEqual(["breaker", "paused"]);
});
