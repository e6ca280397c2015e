// Who looks at the page, and what they may do. The API decides; the page only leaves out what would be refused.

import type { components } from "../api/schema";
import { inkOn } from "../format/colours";
import { ask, credentials, Problem, whenUnauthenticated } from "../api/client";
import type { Capability } from "../api/types";
import { API_ROOT, APP } from "./place";
import { originAllowed } from "./origins";
import { matches } from "./patterns";
import { store } from "./store";

type Schemas = components["schemas"];

/** `GET /v1/session`. */
export type SessionAnswer = Schemas["Session"];
export type Principal = Schemas["Principal"];

export type Session = SessionAnswer & { principal: Principal };

export type SessionState =
  | { is: "asking" }
  | { is: "in"; session: Session }
  | { is: "out"; expired: boolean; answer: SessionAnswer | null; refresh: string | null }
  | { is: "failed"; problem: Problem };

export const session = store<SessionState>({ is: "asking" });

/** The session in force. Only pages call it, and they are drawn with a session only. */
export function current(): Session {
  const state = session.get();
  if (state.is !== "in") throw new Error("there is no session");
  return state.session;
}

export function isOperator(): boolean {
  return current().principal.scope === "operator";
}

/** Whether a portal leaves this event type out. */
export function isHidden(eventType: string): boolean {
  return (current().portal?.hidden_event_types ?? []).some((pattern) => matches(pattern, eventType));
}

const ALL: readonly Capability[] = ["publish", "read", "write", "secrets", "resend"];

/** Whether the caller may do what takes this capability. */
export function may(capability: Capability | "operator"): boolean {
  const { scope, capabilities } = current().principal;
  // What only operators may change takes all capabilities of an operator.
  if (capability === "operator") return scope === "operator" && ALL.every((each) => capabilities.includes(each));
  return capabilities.includes(capability);
}

let renewal: ReturnType<typeof setInterval> | undefined;

function take(answer: SessionAnswer): void {
  credentials.csrf = answer.csrf;
  // An API without keys, or a proxy that names people, lets an operator in: what a portal shows is a tenant's.
  if (answer.principal === null || (APP === "portal" && answer.principal.scope === "operator")) {
    session.set({ is: "out", expired: false, answer, refresh: null });
    return;
  }
  if (answer.portal) {
    parents = answer.portal.parents;
    renewal ??= setInterval(() => void renew(), RENEWAL);
  }
  session.set({ is: "in", session: { ...answer, principal: answer.principal } });
}

/** Ask who we are. */
export async function look(): Promise<void> {
  try {
    take((await ask<SessionAnswer>("GET", "/v1/session", { quiet: true })).value);
  } catch (error) {
    const problem = error instanceof Problem ? error : new Problem(0, "unreachable", "", String(error));
    if (problem.status === 401) lost();
    else session.set({ is: "failed", problem });
  }
}

/** Enter with a key; the daemon keeps the session in a cookie that no script can read. */
export async function enter(key: string): Promise<Problem | null> {
  try {
    take((await ask<SessionAnswer>("POST", "/v1/session", { body: { key }, quiet: true })).value);
    return null;
  } catch (error) {
    return error instanceof Problem ? error : new Problem(0, "unreachable", "", String(error));
  }
}

export async function leave(): Promise<void> {
  await ask("DELETE", "/v1/session", { quiet: true }).catch(() => undefined);
  credentials.bearer = credentials.csrf = null;
  await look();
}

function lost(): void {
  clearInterval(renewal);
  renewal = undefined;
  const before = session.get();
  const expired = before.is === "in" || credentials.bearer !== null;
  credentials.bearer = credentials.csrf = null;
  session.set({ is: "out", expired, answer: null, refresh: before.is === "in" ? (before.session.portal?.refresh_url ?? null) : null });
  tellHost({ type: "dispatcher:renew" });
}

whenUnauthenticated(() => {
  if (session.get().is === "in") lost();
});

// The portal's token comes in the fragment of the link, or from the page around the iframe. It is kept in memory only.

const RENEWAL = 600_000; // a token lives for 15 minutes
let parents: string[] = [];

// The parent's origin, where the browser or the parent itself has told it.
let parent = location.ancestorOrigins?.[0] ?? originOf(document.referrer);

function originOf(address: string): string {
  try {
    return new URL(address).origin;
  } catch {
    return "";
  }
}

function tellHost(message: object): void {
  if (window.parent === window) return;
  if (originAllowed(parents, parent)) window.parent.postMessage(message, parent);
  else for (const origin of parents) if (!origin.includes("*")) window.parent.postMessage(message, origin);
}

async function renew(): Promise<void> {
  try {
    credentials.bearer = (await ask<{ token: string }>("POST", "/v1/portal-sessions/renew", { quiet: true })).value.token;
  } catch (error) {
    if (error instanceof Problem && error.status === 401) lost();
  }
}

/** Take the token out of the address before anything else sees it. */
export function takeToken(): void {
  if (APP !== "portal" || location.hash.length < 2) return;
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  history.replaceState(history.state, "", location.pathname + location.search);
  if (token) credentials.bearer = token;
}

/** Follow the page around the iframe: a new token, and how high the content is. */
export function followHost(): void {
  if (APP !== "portal" || window.parent === window) return;
  addEventListener("message", (event) => {
    if (event.source !== window.parent || !originAllowed(parents, event.origin)) return;
    parent = event.origin;
    const data = event.data as { type?: unknown; token?: unknown } | null;
    if (data?.type !== "dispatcher:token" || typeof data.token !== "string") return;
    credentials.bearer = data.token;
    void look();
  });
  let told = 0;
  new ResizeObserver(() => {
    const height = document.documentElement.scrollHeight;
    if (height === told) return;
    told = height;
    tellHost({ type: "dispatcher:height", height });
  }).observe(document.body);
}

const COLOUR = /^#[0-9a-fA-F]{6}$/;

/** Put the colours, the font and the sign of a portal in place. */
export function showBranding(): void {
  const state = session.get();
  const portal = state.is === "in" ? state.session.portal : null;
  if (!portal) return;
  const root = document.documentElement;
  const pair = (name: "accent" | "background" | "surface" | "text"): [string, string] | null => {
    const light = portal.branding?.colors?.light?.[name];
    const dark = portal.branding?.colors?.dark?.[name];
    return light && dark && COLOUR.test(light) && COLOUR.test(dark) ? [light, dark] : null;
  };
  for (const [name, variable] of [["accent", "--accent"], ["background", "--ground"], ["surface", "--surface"], ["text", "--ink"]] as const) {
    const found = pair(name);
    if (found) root.style.setProperty(variable, `light-dark(${found[0]}, ${found[1]})`);
  }
  const accent = pair("accent");
  if (accent) root.style.setProperty("--on-accent", `light-dark(${inkOn(accent[0])}, ${inkOn(accent[1])})`);
  const font = portal.branding?.font;
  if (font && /^[\w ,-]{1,100}$/.test(font)) root.style.setProperty("--font", `${font}, system-ui, sans-serif`);
  if (!portal.gutters) root.dataset["gutters"] = "none";
  const sign = portal.branding?.favicon;
  const link = document.querySelector<HTMLLinkElement>("link[rel=icon]");
  if (sign && link) link.href = new URL(sign, API_ROOT).href;
}
