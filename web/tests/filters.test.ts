import { expect, test } from "vitest";
import { DELIVERY_FILTERS, filtersOf, guessId, listQuery, rangeOf, rangeQuery, wanted } from "../src/state/filters";

const NOW = Date.parse("2026-01-31T12:00:00Z");

test("filters come out of an address as they went in", () => {
  const filters = { state: "failed", status: "5xx", reason: "timeout", event_type: "a&b=c #d", subscription: "sub_1", tenant: "<b>", event: 'evt "1"', host: "a.example", cause: "503" };
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

test("a delivery that the stream tells of passes the filters of its list", () => {
  const row = { subscription: "sub_a", tenant: "acme", event_id: "evt_1", event_type: "invoice.paid", state: "retrying", status: 503, reason: null, failure: null, host: "a.example" };
  const passes = [
    {},
    { state: "failed" },
    { state: "retrying", subscription: "sub_a", tenant: "acme", event: "evt_1", host: "a.example" },
    { event_type: "invoice.*" },
    { status: "503" },
    { status: "5xx" },
    { cause: "503" },
  ];
  for (const filters of passes) expect(wanted(filters, row), JSON.stringify(filters)).toBe(true);
  const fails = [{ state: "dead" }, { subscription: "sub_b" }, { tenant: "b" }, { event: "evt_2" }, { event_type: "order.*" }, { event_type: "invoice" }, { status: "500" }, { status: "4xx" }, { reason: "timeout" }, { cause: "500" }, { host: "b" }];
  for (const filters of fails) expect(wanted(filters as Record<string, string>, row), JSON.stringify(filters)).toBe(false);
});

test("a cause is the failure, else the status, else the reason, of what isn't delivered", () => {
  const row = { subscription: "s", tenant: null, event_id: "e", event_type: "a", state: "dead", status: null as number | null, reason: "exhausted" as string | null, failure: "timeout" as string | null, host: null };
  expect(wanted({ cause: "timeout" }, row)).toBe(true);
  expect(wanted({ reason: "timeout" }, row)).toBe(true);
  expect(wanted({ reason: "exhausted" }, row)).toBe(true);
  expect(wanted({ cause: "exhausted" }, row)).toBe(false);
  expect(wanted({ cause: "breaker" }, { ...row, state: "pending", reason: "breaker", failure: null })).toBe(true);
  expect(wanted({ cause: "200" }, { ...row, state: "delivered", status: 200, failure: null })).toBe(false);
  expect(wanted({ cause: "503" }, { ...row, state: "dropped", status: 503, failure: null })).toBe(false);
});
