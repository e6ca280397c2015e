import { expect, test } from "vitest";
import type { ReceivedRequest } from "../src/api/types";
import { whyNot } from "../src/state/signature";
import { de } from "../src/text/de";
import { en } from "../src/text/en";

const right: ReceivedRequest["signature"] = { verdict: "valid", missing: [], off_seconds: 0, schemes: ["v1"], expected: "v1,AAAA" };

test.each([
  [{}, "verifies"],
  [{ verdict: "missing", missing: ["webhook-id", "webhook-signature"] }, "webhook-id, webhook-signature"],
  [{ verdict: "stale", off_seconds: -3600 }, "ago, more than 5 minutes"],
  [{ verdict: "stale", off_seconds: 3600 }, "ahead, more than 5 minutes"],
  [{ verdict: "stale", off_seconds: null }, "no Unix time"],
  [{ verdict: "wrong" }, "another secret"],
  [{ verdict: "wrong", schemes: ["v1", "v1"] }, "None of the 2"],
  [{ verdict: "wrong", schemes: ["v1a"] }, "scheme v1a"],
] as [Partial<ReceivedRequest["signature"]>, string][])("%o is told as %s", (change, words) => {
  expect(whyNot({ ...right, ...change }, en)).toContain(words);
  expect(whyNot({ ...right, ...change }, de)).not.toBe("");
});
