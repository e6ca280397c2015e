import { expect, test } from "vitest";
import { MAX_NAME, MAX_VIEWS, readViews, renamed, viewOf, viewsKey, withView, type SavedView } from "../src/state/views";

const view = (name: string, filters: Record<string, string> = { state: "dead" }, page = "deliveries"): SavedView => ({ name, page, filters });
const NAMES = ["state", "tenant", "cause"];

test("a view is found by its filters, in whatever order, and not by its time", () => {
  const views = [view("one", { state: "dead", tenant: "a&b=c" }), view("events", { state: "dead" }, "events")];
  const query = new URLSearchParams({ tenant: "a&b=c", since: "2026-01-31T10:00:00Z", cursor: "x", state: "dead", tail: "1" });
  expect(viewOf(views, "deliveries", query, NAMES)).toBe(views[0]);
  query.set("cause", "503");
  expect(viewOf(views, "deliveries", query, NAMES)).toBeUndefined();
  expect(viewOf(views, "deliveries", new URLSearchParams("state=dead"), NAMES)).toBeUndefined();
});

test("one of the same name and page is replaced, and the oldest make room", () => {
  const views = withView([view("a"), view("a", {}, "events")], view("a", { state: "failed" }));
  expect(views).toEqual([view("a", {}, "events"), view("a", { state: "failed" })]);
  let many: SavedView[] = [];
  for (let n = 0; n < MAX_VIEWS + 3; n += 1) many = withView(many, view(`v${n}`));
  expect(many).toHaveLength(MAX_VIEWS);
  expect(many[0]!.name).toBe("v3");
});

test("a new name is trimmed and cut; one that is taken or empty changes nothing", () => {
  const [a, b] = [view("a"), view("b")];
  expect(renamed([a, b], a, "  c ")).toEqual([view("c"), b]);
  expect(renamed([a, b], a, "b")).toEqual([a, b]);
  expect(renamed([a, b], a, " ")).toEqual([a, b]);
  expect(renamed([a], a, "x".repeat(MAX_NAME + 9))[0]!.name).toHaveLength(MAX_NAME);
});

test("what is no view is left out of what the browser has", () => {
  const good = view("good");
  expect(readViews(JSON.stringify([good]))).toEqual([good]);
  for (const text of [null, "", "{", "null", "{}", '"a"']) expect(readViews(text)).toEqual([]);
  const odd = [null, 3, "x", [], { name: 1, page: "deliveries", filters: {} }, { name: "a", page: "../x", filters: {} }, { name: "a", page: "events", filters: null }];
  expect(readViews(JSON.stringify(odd))).toEqual([]);
  expect(readViews(JSON.stringify([{ ...good, filters: { state: "dead", status: 5, tenant: {} } }]))).toEqual([good]);
  expect(readViews(JSON.stringify(Array.from({ length: MAX_VIEWS + 5 }, () => good)))).toHaveLength(MAX_VIEWS);
});

test("they are kept for each application and caller, and for a portal's user through all of its sessions", () => {
  const key = viewsKey("console", { by: "cookie", id: "abc", name: "ops", tenant: null });
  expect(viewsKey("portal", { by: "cookie", id: "abc", name: "ops", tenant: null })).not.toBe(key);
  expect(viewsKey("console", { by: "cookie", id: "abd", name: "ops", tenant: null })).not.toBe(key);
  const session = (id: string, name: string, tenant = "acme") => viewsKey("portal", { by: "portal", id: `portal:${id}`, name, tenant });
  expect(session("1", "ada")).toBe(session("2", "ada"));
  expect(session("1", "portal session 1")).toBe(session("2", "portal session 2"));
  expect(session("1", "ada")).not.toBe(session("1", "bob"));
  expect(session("1", "ada")).not.toBe(session("1", "ada", "globex"));
});
