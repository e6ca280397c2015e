import { expect, test } from "vitest";
import { parseTree, printTree, readJson } from "../src/api/json";
import { bytesText, countText, percentText, shortText } from "../src/format/numbers";

test("64-bit integers are read and shown exactly", () => {
  const answer = readJson('{"offset": 9223372036854775807, "small": 42, "ids": [9007199254740993, -9223372036854775808]}') as { offset: string; small: number; ids: string[] };
  expect(answer).toEqual({ offset: "9223372036854775807", small: 42, ids: ["9007199254740993", "-9223372036854775808"] });
  expect(countText(answer.offset, "en")).toBe("9,223,372,036,854,775,807");
  expect(countText(9007199254740991, "en")).toBe("9,007,199,254,740,991");
});

test("a tree keeps spelling, order and what comes twice", () => {
  const text = '{"b": 1.10, "10": 1E2, "9": 123456789012345678901234567890, "b": "\\u00e4\\ud83d", "e": [], "f": {}, "g": [true, false, null]}';
  expect(printTree(parseTree(text))).toBe('{\n  "b": 1.10,\n  "10": 1E2,\n  "9": 123456789012345678901234567890,\n  "b": "ä\\ud83d",\n  "e": [],\n  "f": {},\n  "g": [\n    true,\n    false,\n    null\n  ]\n}');
});

test.each(["", "{", "[1,]", "{'a': 1}", "01", "1 2", '"\n"', "nul", '{"a" 1}', '"\\x"'])("%j is no JSON, here as for the browser", (text) => {
  expect(() => parseTree(text)).toThrow(SyntaxError);
  expect(() => JSON.parse(text) as unknown).toThrow(SyntaxError);
});

test("what is nested without end is refused and not the end of the page", () => {
  expect(() => parseTree("[".repeat(100_000))).toThrow(SyntaxError);
});

test("no share is rounded to all or nothing", () => {
  expect(percentText(1, "en")).toBe("100 %");
  expect(percentText(0.999999, "en")).toBe("99.999 %");
  expect(percentText(0.0000001, "en")).toBe("0.001 %");
  expect(percentText(0, "en")).toBe("0 %");
  expect(percentText(0.5, "en")).toBe("50 %");
});

test("sizes and axes", () => {
  expect(bytesText(1023, "en")).toBe("1023 B");
  expect(bytesText(1048576, "en")).toBe("1 MiB");
  expect(shortText(12_345)).toBe("12.3k");
  expect(shortText(2_000_000)).toBe("2M");
});
