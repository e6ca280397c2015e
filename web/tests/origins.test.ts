import { expect, test } from "vitest";
import { originAllowed } from "../src/state/origins";
import { inkOn } from "../src/format/colours";

test.each([
  ["https://app.example.com", "https://app.example.com", true],
  ["https://app.example.com", "https://app.example.com.evil.test", false],
  ["https://app.example.com", "http://app.example.com", false],
  ["https://*.example.com", "https://a.example.com", true],
  ["https://*.example.com", "https://a.b.example.com", true],
  ["https://*.example.com", "https://example.com", false],
  ["https://*.example.com", "https://.example.com", false],
  ["https://*.example.com", "https://evil-example.com", false],
  ["https://*.example.com", "http://a.example.com", false],
  ["https://*.example.com", "https://a.example.com:8443", false],
  ["https://*.example.com", "null", false],
])("%s lets %s in: %s", (pattern, origin, expected) => {
  expect(originAllowed([pattern], origin)).toBe(expected);
});

test("the ink on a colour can be read", () => {
  expect(inkOn("#ffffff")).toBe("#000000");
  expect(inkOn("#1a56db")).toBe("#ffffff");
  expect(inkOn("#ffd400")).toBe("#000000");
});
