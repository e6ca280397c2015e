// Filters and time ranges in the address.

import type { Query } from "../api/client";
import { instant, utcText } from "../format/time";

export const DELIVERY_FILTERS = ["state", "status", "reason", "event_type", "subscription", "tenant", "event", "host", "cause"] as const;
export const EVENT_FILTERS = ["type", "tenant"] as const;
export const ISSUE_FILTERS = ["state", "subscription", "tenant"] as const;
export const PAGE_SIZES = [50, 100, 200, 1000] as const;
export const AT_ONCE = 200; // rows of one answer of the API, at the most

export interface Range {
  since: number; // Unix milliseconds
  until: number | null; // null: the present
}

const DAY = 86_400_000;
export const WEEK = 7 * DAY;

/** The range that the address names; else the last day before `now`. */
export function rangeOf(query: URLSearchParams, now: number, length = DAY): Range {
  const since = instant(query.get("since"));
  const until = instant(query.get("until"));
  return { since: since ?? (until ?? now) - length, until };
}

/** The names of a range for an address; both ends absolute. */
export function rangeQuery(range: Range): { since: string; until: string | null } {
  return { since: utcText(range.since), until: range.until === null ? null : utcText(range.until) };
}

/** The filters that the address names, as the API takes them. Unknown names are left out, empty ones too. */
export function filtersOf(query: URLSearchParams, names: readonly string[]): Record<string, string> {
  const found: Record<string, string> = {};
  for (const name of names) {
    const value = query.get(name)?.trim();
    if (value) found[name] = value;
  }
  return found;
}

interface Told {
  subscription: string;
  tenant: string | null;
  event_id: string;
  event_type: string;
  state: string;
  status: number | null;
  reason: string | null;
  failure: string | null;
  host: string | null;
}

/** Whether a list with these filters shows a delivery that the stream tells of. */
export function wanted(filters: Readonly<Record<string, string>>, row: Told): boolean {
  const { state, status, reason, cause, event_type: type } = filters;
  const equal = (name: string, value: string | null) => !filters[name] || filters[name] === value;
  return (
    equal("subscription", row.subscription) &&
    equal("tenant", row.tenant) &&
    equal("event", row.event_id) &&
    equal("host", row.host) &&
    (!state || state === row.state || (state === "failed" && ["retrying", "dead", "dropped"].includes(row.state))) &&
    (!type || (type.endsWith("*") ? row.event_type.startsWith(type.slice(0, -1)) : row.event_type === type)) &&
    (!status || (row.status !== null && (status.endsWith("xx") ? status[0] === String(row.status)[0] : status === String(row.status)))) &&
    (!reason || reason === row.reason || reason === row.failure) &&
    (!cause || (["pending", "retrying", "dead"].includes(row.state) && cause === (row.failure ?? (row.status === null ? row.reason : String(row.status)))))
  );
}

/** What a list asks the API for. */
export function listQuery(query: URLSearchParams, names: readonly string[], now: number): Query {
  const asked: Query = { ...filtersOf(query, names), ...rangeQuery(rangeOf(query, now)) };
  const cursor = query.get("cursor");
  if (cursor) asked["cursor"] = cursor;
  asked["limit"] = Math.min(AT_ONCE, pageSize(query));
  return asked;
}

export function pageSize(query: URLSearchParams): number {
  const asked = Number(query.get("limit"));
  return (PAGE_SIZES as readonly number[]).includes(asked) ? asked : PAGE_SIZES[0];
}

/** What an id that somebody pasted may be, the likeliest first. */
export function guessId(text: string): { page: string; id: string }[] {
  const id = text.trim().replace(/^["'<]+|["'>,;]+$/g, "");
  if (id === "") return [];
  const address = /\/(?:console|portal|inspect)\/([a-z-]+)\?(?:[^#]*&)?id=([^&#]+)/.exec(id);
  if (address) return [{ page: address[1]!, id: decodeURIComponent(address[2]!) }];
  if (/^dlv_[0-9a-f]+$/.test(id)) return [{ page: "delivery", id }];
  if (/^rpl_/.test(id)) return [{ page: "replay", id }, { page: "event", id }];
  if (/^sub_/.test(id)) return [{ page: "subscription", id }, { page: "event", id }];
  if (/^evt_/.test(id)) return [{ page: "event", id }];
  if (/^[0-9a-f]{24}$/.test(id)) return [{ page: "delivery", id: `dlv_${id}` }, { page: "event", id }];
  return [
    { page: "event", id },
    { page: "subscription", id },
  ];
}
