import { expect, test } from "vitest";
import { matches } from "../src/state/patterns";

test.each([
  ["*", "invoice.paid", true],
  ["invoice.*", "invoice.paid", true],
  ["invoice.*", "invoice.paid.late", true],
  ["invoice.*", "invoice", false],
  ["invoice.*", "invoices.paid", false],
  ["*.paid", "invoice.paid", true],
  ["*.paid", "a.b.paid", false],
  ["invoice.paid", "invoice.paid", true],
  ["*", "dispatcher.subscription.disabled", false],
  ["dispatcher.*", "dispatcher.subscription.disabled", true],
])("%s and %s: %s", (pattern, type, expected) => {
  expect(matches(pattern, type)).toBe(expected);
});
