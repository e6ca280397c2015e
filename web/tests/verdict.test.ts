// Every row that isn't delivered says why, what comes next and what to do: for every word of the documents, in every language.

import { describe, expect, test } from "vitest";
import attempts from "../../docs/attempts.md?raw";
import metrics from "../../docs/metrics.md?raw";
import { causeText, verdict } from "../src/state/verdict";
import { de } from "../src/text/de";
import { en } from "../src/text/en";


function reasons(decision: string): string[] {
  const row = attempts.split("\n").find((line) => line.startsWith(`| ${decision} |`))!;
  const cell = row.split("|")[3]!.replace(/\([^)]*\)/g, "");
  return cell.split(",").map((each) => each.trim()).filter(Boolean);
}

const failures = metrics
  .slice(metrics.indexOf("## Why an attempt failed"))
  .split("\n")
  .filter((line) => line.startsWith("| `"))
  .flatMap((line) => [...line.split("|")[1]!.matchAll(/`([a-z_]+)`/g)].map((found) => found[1]!));

const ROW = { state: "retrying", reason: null, status: null, failure: null, next_attempt_at: "2026-01-31T12:00:00Z", attempts: 2, host: "a.example" } as const;

describe.each([
  ["English", en],
  ["German", de],
])("in %s", (_, texts) => {
  test.each([...reasons("parked").map((reason) => ["pending", reason]), ...reasons("dead").map((reason) => ["dead", reason]), ...reasons("dropped").map((reason) => ["dropped", reason])])("%s, %s", (state, reason) => {
    const found = verdict({ ...ROW, state: state as "dead", reason: reason! }, texts)!;
    for (const text of [found.why, found.next, found.todo]) {
      expect(text.length).toBeGreaterThan(5);
      expect(text).not.toContain(reason!.includes("_") ? reason! : "\0");
    }
  });

  test.each(failures)("an attempt without an answer: %s", (failure) => {
    const found = verdict({ ...ROW, failure }, texts)!;
    expect(found.why).not.toBe(failure);
    expect(found.todo).not.toBe(texts.verdict.waits);
    expect(found.when).toBe(Date.parse(ROW.next_attempt_at));
  });

  test.each([301, 400, 401, 403, 404, 410, 413, 418, 429, 500, 503])("an answer: %d", (status) => {
    const found = verdict({ ...ROW, status }, texts)!;
    expect(found.why).toContain(String(status));
    expect(found.todo).not.toBe(texts.verdict.waits);
  });

  test.each([...failures, ...reasons("parked"), ...reasons("dead"), "404", "418", "503"])("a cause: %s", (cause) => {
    const found = causeText(cause, texts);
    expect(found.why).not.toBe(cause);
    expect(found.why.length).toBeGreaterThan(5);
    expect(found.todo.length).toBeGreaterThan(5);
  });

  test("a cause that is newer than the page is shown as it is", () => {
    expect(causeText("constructor", texts)).toEqual({ why: "constructor", todo: texts.verdict.waits, remedy: "wait" });
  });

  test("what waits in a queue, and words that are newer than the page", () => {
    expect(verdict({ ...ROW, state: "pending" }, texts)!.why).toBe(texts.verdict.queued.why);
    expect(verdict({ ...ROW, state: "dead", reason: "constructor" }, texts)!.why).toBe("constructor");
    expect(verdict({ ...ROW, state: "delivered" }, texts)).toBeNull();
  });
});

test("the documents name what they should", () => {
  expect(reasons("parked")).toContain("breaker");
  expect(reasons("dead")).toContain("exhausted");
  expect(reasons("dropped")).toContain("deleted");
  expect(failures).toContain("dns_not_found");
});
