// Saved views: named filters of a list, kept by the browser for each application and caller. What a view shows is an address, so a view is
// shared by its link. The time is none of it: a view is of whatever time is looked at.

import { filtersOf } from "./filters";

export interface SavedView {
  name: string;
  page: string;
  filters: Record<string, string>;
}

export const MAX_VIEWS = 50;
export const MAX_NAME = 60;

interface Who {
  by: string;
  id: string;
  name: string;
  tenant: string | null;
}

/** Under which name the browser keeps somebody's views. A portal session's id is another one each time: there the tenant and the user count. */
export function viewsKey(app: string, who: Who): string {
  const whose = who.by === "portal" ? `${who.tenant ?? ""}/${who.name === `portal session ${who.id.replace(/^portal:/, "")}` ? "" : who.name}` : who.id;
  return `dispatcher.views.${app}.${whose}`;
}

/** What the browser has kept. Whatever is no view is left out: others may have written there. */
export function readViews(text: string | null): SavedView[] {
  let raw: unknown;
  try {
    raw = JSON.parse(text ?? "[]");
  } catch {
    return [];
  }
  if (!Array.isArray(raw)) return [];
  return raw.flatMap((each: unknown): SavedView[] => {
    const { name, page, filters } = (each ?? {}) as Partial<Record<keyof SavedView, unknown>>;
    if (typeof name !== "string" || typeof page !== "string" || !/^[a-z-]+$/.test(page) || typeof filters !== "object" || filters === null) return [];
    const kept = Object.entries(filters).filter((entry): entry is [string, string] => typeof entry[1] === "string");
    return [{ name: name.slice(0, MAX_NAME), page, filters: Object.fromEntries(kept) }];
  }).slice(0, MAX_VIEWS);
}

/** The filters of an address, in one order: two addresses that show the same have the same. */
export function filtersText(filters: Readonly<Record<string, string>>): string {
  return JSON.stringify(Object.entries(filters).sort(([one], [other]) => (one < other ? -1 : 1)));
}

/** The view of a page that shows these filters. */
export function viewOf(views: readonly SavedView[], page: string, query: URLSearchParams, names: readonly string[]): SavedView | undefined {
  const shown = filtersText(filtersOf(query, names));
  return views.find((each) => each.page === page && filtersText(each.filters) === shown);
}

/** With a view more; one of the same name on the same page is replaced. The oldest make room. */
export function withView(views: readonly SavedView[], view: SavedView): SavedView[] {
  const others = views.filter((each) => each.page !== view.page || each.name !== view.name);
  return [...others, view].slice(-MAX_VIEWS);
}

/** With another name for a view; a name that the page has already stays with the one that has it. */
export function renamed(views: readonly SavedView[], view: SavedView, name: string): SavedView[] {
  const wanted = name.trim().slice(0, MAX_NAME);
  if (wanted === "" || views.some((each) => each !== view && each.page === view.page && each.name === wanted)) return [...views];
  return views.map((each) => (each === view ? { ...each, name: wanted } : each));
}
