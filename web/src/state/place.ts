// Where the reader is. The address is the state: the page is the last segment of the path, everything else is in the query.
// All addresses are relative and flat (`console/delivery?id=...`), so the pages work below any path of a proxy.

import { store } from "./store";

// The document's base, which the daemon writes into it.
const DIRECTORY = new URL(".", document.baseURI).pathname;

/** The API's root, with a slash at its end. */
export const API_ROOT = new URL("../", location.origin + DIRECTORY).href;
export const APP = (/\/(portal|inspect)\/$/.exec(DIRECTORY)?.[1] ?? "console") as "console" | "portal" | "inspect";

/** The page of the application's own address. */
export const FIRST = APP === "inspect" ? "deliveries" : "overview";

/** Whether the reader came to the application itself, and to no page of it. */
export const CAME_TO_NONE = location.pathname.slice(DIRECTORY.length) === "";

export interface Place {
  page: string;
  query: URLSearchParams;
  key: string; // of the entry of the browser's history
  returned: boolean; // by the browser's back or forward: what was shown is shown again
}

interface EntryState {
  key: string;
  y?: number;
}

let counter = 0;
const newKey = () => `${Date.now().toString(36)}.${(counter += 1)}`;

// Pages of a time. Its beginning is in the address from the first moment on, so that every link is to the same rows.
const LENGTHS: Readonly<Record<string, number>> = { overview: 3_600_000, deliveries: 86_400_000, events: 86_400_000, issues: 604_800_000, subscription: 86_400_000 };

function here(returned: boolean): Place {
  const state = history.state as EntryState | null;
  const key = state?.key ?? newKey();
  if (state?.key !== key) history.replaceState({ ...state, key }, "");
  const page = (location.pathname.startsWith(DIRECTORY) && location.pathname.slice(DIRECTORY.length)) || FIRST;
  const query = new URLSearchParams(location.search);
  const length = Object.hasOwn(LENGTHS, page) ? LENGTHS[page]! : 0;
  if (length > 0 && !query.has("since")) {
    const end = Date.parse(query.get("until") ?? "") || Math.floor(Date.now() / 1000) * 1000;
    query.set("since", new Date(end - length).toISOString().replace(".000Z", "Z"));
    const url = new URL(location.href);
    url.search = query.toString();
    history.replaceState(history.state, "", url);
  }
  return { page, query, key, returned };
}

export const place = store<Place>(here(false));

/** Go to an address of the application. */
export function go(href: string, options: { replace?: boolean } = {}): void {
  const url = new URL(href, document.baseURI);
  url.hash = "";
  if (options.replace) history.replaceState(history.state, "", url);
  else {
    history.replaceState({ ...(history.state as EntryState), y: scrollY }, "");
    history.pushState({ key: newKey() }, "", url);
  }
  const before = place.get();
  place.set(here(false));
  if (!options.replace && before.page !== place.get().page) scrollTo(0, 0);
}

addEventListener("popstate", () => {
  place.set(here(true));
  const y = (history.state as EntryState | null)?.y;
  if (y !== undefined) requestAnimationFrame(() => requestAnimationFrame(() => scrollTo(0, y)));
});

/** The address of a page. Empty values are left out. */
export function to(page: string, query: Record<string, string | number | null | undefined> = {}): string {
  const search = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) if (value !== null && value !== undefined && value !== "") search.set(name, String(value));
  const text = search.toString();
  return `${page === FIRST ? "./" : page}${text === "" ? "" : `?${text}`}`;
}

/** The present address with some of its query changed; null takes a name out. */
export function changed(changes: Record<string, string | number | null | undefined>): string {
  const { page, query } = place.get();
  const next = new URLSearchParams(query);
  for (const [name, value] of Object.entries(changes)) {
    if (value === null || value === undefined || value === "") next.delete(name);
    else next.set(name, String(value));
  }
  const text = next.toString();
  return `${page === FIRST ? "./" : page}${text === "" ? "" : `?${text}`}`;
}

// Rows, tabs and buttons that lead somewhere are links: a plain click on one stays in this document.
addEventListener("click", (event) => {
  if (event.defaultPrevented || event.button !== 0 || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
  const link = (event.target as Element | null)?.closest("a");
  if (!link || link.target || link.hasAttribute("download") || link.hasAttribute("data-leave")) return;
  const url = new URL(link.href);
  if (url.origin !== location.origin || !url.pathname.startsWith(DIRECTORY) || url.pathname.slice(DIRECTORY.length).includes("/")) return;
  if (url.hash !== "") return;
  event.preventDefault();
  go(url.href);
});
