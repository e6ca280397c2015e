import { describe, expect, test } from "vitest";
import { durationText, isAmbiguous, offsetAt, offsetText, readDuration, readTime, timeText, utcText } from "../src/format/time";

const BERLIN = "Europe/Berlin";
const utc = (text: string) => Date.parse(text);

describe("the night when the clock is put back", () => {
  const first = utc("2026-10-25T00:30:00Z");
  const second = utc("2026-10-25T01:30:00Z");

  test("shows both half past twos, and which is which", () => {
    expect(timeText(first, BERLIN)).toBe("2026-10-25 02:30:00 +02:00");
    expect(timeText(second, BERLIN)).toBe("2026-10-25 02:30:00 +01:00");
  });

  test("says no offset where the clock is clear", () => {
    expect(timeText(utc("2026-10-24T23:59:59Z"), BERLIN)).toBe("2026-10-25 01:59:59");
    expect(timeText(utc("2026-10-25T02:00:00Z"), BERLIN)).toBe("2026-10-25 03:00:00");
    expect(isAmbiguous(utc("2026-07-01T00:30:00Z"), BERLIN)).toBe(false);
  });

  test("reads back what it shows, and takes the earlier one without an offset", () => {
    expect(readTime(timeText(first, BERLIN), BERLIN)).toBe(first);
    expect(readTime(timeText(second, BERLIN), BERLIN)).toBe(second);
    expect(readTime("2026-10-25 02:30:00", BERLIN)).toBe(first);
  });
});

describe("the night when the clock is put forward", () => {
  test("moves a time that is left out behind the gap", () => {
    expect(timeText(readTime("2026-03-29 02:30:00", BERLIN), BERLIN)).toBe("2026-03-29 03:30:00");
  });
});

const QUARTER = 15 * 60_000;

test.each(["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "UTC", "America/St_Johns"])("what is shown in %s reads back as itself all year, in the nights of changing clocks each quarter of an hour", (zone) => {
  let changes = 0;
  for (let day = utc("2026-01-01T00:00:00Z"); day < utc("2027-01-01T00:00:00Z"); day += 96 * QUARTER) {
    const change = offsetAt(day, zone) !== offsetAt(day + 96 * QUARTER, zone);
    changes += Number(change);
    for (let at = day; at < day + 96 * QUARTER; at += change ? QUARTER : 61 * QUARTER) expect(readTime(timeText(at, zone), zone)).toBe(at);
  }
  expect(changes).toBe(zone === "UTC" || zone === "Asia/Kathmandu" ? 0 : 2);
});

test("milliseconds and offsets are read", () => {
  expect(readTime("2026-01-31 12:00:00.5", "UTC")).toBe(utc("2026-01-31T12:00:00.500Z"));
  expect(readTime("2026-01-31T12:00:00+05:45", "UTC")).toBe(utc("2026-01-31T06:15:00Z"));
  expect(readTime("2026-01-31", BERLIN)).toBe(utc("2026-01-30T23:00:00Z"));
  expect(timeText(utc("2026-01-31T12:00:00.007Z"), "UTC", "millisecond")).toBe("2026-01-31 12:00:00.007");
});

test.each(["", "yesterday", "2026-02-30 12:00", "2026-13-01", "2026-01-31 24:00", "2026-01-31 12:60"])("%s is no time", (text) => {
  expect(readTime(text, "UTC")).toBeNaN();
});

test("offsets of half and quarter hours", () => {
  expect(offsetText(offsetAt(utc("2026-01-01T00:00:00Z"), "Asia/Kathmandu"))).toBe("+05:45");
  expect(offsetText(offsetAt(utc("2026-01-01T00:00:00Z"), "America/St_Johns"))).toBe("-03:30");
  expect(offsetText(0)).toBe("Z");
});

test("UTC is written as the API writes it", () => {
  expect(utcText(utc("2026-01-31T12:00:00.120Z"))).toBe("2026-01-31T12:00:00.120Z");
  expect(utcText(utc("2026-01-31T12:00:00Z"))).toBe("2026-01-31T12:00:00Z");
});

test.each([
  [0, "0 ms"],
  [999, "999 ms"],
  [1000, "1 s"],
  [1250, "1.25 s"],
  [59_000, "59 s"],
  [60_000, "1 min"],
  [90_000, "1 min 30 s"],
  [3_900_000, "1 h 5 min"],
  [90_000_000, "1 d 1 h"],
])("%d ms is %s", (ms, text) => {
  expect(durationText(ms)).toBe(text);
});

test("durations are read as the settings write them", () => {
  expect(readDuration("1h30m")).toBe(5_400_000);
  expect(readDuration("500ms")).toBe(500);
  expect(readDuration("5")).toBeNaN();
  expect(readDuration("")).toBeNaN();
});
