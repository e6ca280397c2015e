import { expect, test } from "vitest";
import { DELIVERY_FILTERS, filtersOf, guessId, listQuery, rangeOf, rangeQuery } from "../src/state/filters";

const NOW = Date.parse("2026-01-31T12:00:00Z");

test("filters come out of an address as they went in", () => {
  const filters = { state: "failed", status: "5xx", reason: "timeout", event_type: "a&b=c #d", subscription: "sub_1", tenant: "<b>", event: 'evt "1"', host: "a.example" };
  const query = new URLSearchParams(new URLSearchParams(filters).toString());
  expect(filtersOf(query, DELIVERY_FILTERS)).toEqual(filters);
});

test("what is empty or unknown is no filter", () => {
  expect(filtersOf(new URLSearchParams("state=&foo=1&status=%20"), DELIVERY_FILTERS)).toEqual({});
});

test("a range is absolute, and an open one ends now", () => {
  const range = rangeOf(new URLSearchParams("since=2026-01-31T10:00:00Z&until=2026-01-31T11:00:00.250Z"), NOW);
  expect(rangeQuery(range)).toEqual({ since: "2026-01-31T10:00:00Z", until: "2026-01-31T11:00:00.250Z" });
  expect(rangeOf(new URLSearchParams("since=2026-01-31T10:00:00Z"), NOW).until).toBeNull();
  expect(rangeQuery(rangeOf(new URLSearchParams(), NOW))).toEqual({ since: "2026-01-30T12:00:00Z", until: null });
  expect(rangeOf(new URLSearchParams("since=nonsense"), NOW).since).toBe(NOW - 86_400_000);
});

test("a list asks for its filters, its time, its page", () => {
  expect(listQuery(new URLSearchParams("state=dead&limit=100&cursor=abc&since=2026-01-31T10:00:00Z&other=1"), DELIVERY_FILTERS, NOW)).toEqual({
    state: "dead",
    since: "2026-01-31T10:00:00Z",
    until: null,
    cursor: "abc",
    limit: 100,
  });
  expect(listQuery(new URLSearchParams("limit=100000"), DELIVERY_FILTERS, NOW)["limit"]).toBe(50);
});

test.each([
  ["dlv_3f0c9b1e5d7a42c68e90b1d2", "delivery", "dlv_3f0c9b1e5d7a42c68e90b1d2"],
  ["3f0c9b1e5d7a42c68e90b1d2", "delivery", "dlv_3f0c9b1e5d7a42c68e90b1d2"],
  ["evt_19lV", "event", "evt_19lV"],
  [" sub_billing, ", "subscription", "sub_billing"],
  ["rpl_0001", "replay", "rpl_0001"],
  ["anything else", "event", "anything else"],
  ["https://a.example/x/console/delivery?id=dlv_1&attempt=2", "delivery", "dlv_1"],
  ["https://a.example/console/event?a=b&id=a%2Fb", "event", "a/b"],
])("%s leads to the %s", (text, page, id) => {
  expect(guessId(text)[0]).toEqual({ page, id });
});

test("nothing leads nowhere", () => {
  expect(guessId("  ")).toEqual([]);
});
