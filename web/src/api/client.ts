// One way to the API for every page: where it is, who asks, and what an error is.

import type { paths } from "./schema";
import { readJson } from "./json";
import { API_ROOT, APP } from "../state/place";

/** An answer that is an error, or no answer. */
export class Problem extends Error {
  constructor(
    readonly status: number, // 0: no answer
    readonly kind: string, // the end of the problem document's `type`
    readonly title: string,
    readonly detail: string,
    readonly requestId: string | null = null,
    readonly errors: { field: string; message: string }[] = [],
    readonly retryAfter: number | null = null, // seconds
  ) {
    super(detail || title);
  }

  /** What the document says of one field, with its parts. */
  of(field: string): string | undefined {
    const found = this.errors.filter((error) => error.field === field || error.field.startsWith(`${field}[`) || error.field.startsWith(`${field}.`));
    return found.length === 0 ? undefined : found.map((error) => (error.field === field ? error.message : `${error.field} ${error.message}`)).join("; ");
  }
}

interface Credentials {
  bearer: string | null;
  csrf: string | null;
}

export const credentials: Credentials = { bearer: null, csrf: null };

let onUnauthenticated: () => void = () => undefined;

/** Called when the API no longer knows the caller. */
export function whenUnauthenticated(call: () => void): void {
  onUnauthenticated = call;
}

export type Query = Record<string, string | number | boolean | null | undefined | readonly string[]>;

export interface Options {
  path?: Record<string, string>;
  query?: Query;
  body?: unknown;
  text?: string; // a body that is JSON already
  type?: string;
  headers?: Record<string, string>;
  signal?: AbortSignal;
  accept?: string;
  timeout?: number; // milliseconds
  quiet?: boolean; // a 401 is an answer, not the end of the session
}

/** The address of a route, its parameters filled in. */
export function address(path: string, options: Pick<Options, "path" | "query"> = {}): string {
  const filled = path.replace(/^\//, "").replace(/\{(\w+)\}/g, (_, name: string) => encodeURIComponent(options.path?.[name] ?? ""));
  const url = new URL(filled, API_ROOT);
  for (const [name, value] of Object.entries(options.query ?? {})) {
    if (Array.isArray(value)) for (const each of value) url.searchParams.append(name, each);
    else if (value !== null && value !== undefined && value !== "") url.searchParams.set(name, String(value));
  }
  return url.href;
}

const TIMEOUT = 30_000;

/** A portal has its token and nothing else: an operator's cookie in the same browser is not its business. */
export const COOKIES: RequestCredentials = APP === "portal" ? "omit" : "same-origin";

/** The answer of a request, whatever its form. Raises Problem. */
export async function request(method: string, path: string, options: Options = {}): Promise<Response> {
  const headers = new Headers(options.headers);
  headers.set("Accept", options.accept ?? "application/json, application/problem+json");
  if (credentials.bearer !== null) headers.set("Authorization", `Bearer ${credentials.bearer}`);
  if (method !== "GET" && credentials.csrf !== null) headers.set("x-dispatcher-csrf", credentials.csrf);
  const init: RequestInit = { method, headers, credentials: COOKIES, cache: "no-store", redirect: "error", referrerPolicy: "no-referrer" };
  if (options.text !== undefined || options.body !== undefined) {
    headers.set("Content-Type", options.type ?? "application/json");
    init.body = options.text ?? JSON.stringify(options.body);
  }
  const limit = AbortSignal.timeout(options.timeout ?? TIMEOUT);
  init.signal = options.signal ? AbortSignal.any([options.signal, limit]) : limit;
  let response: Response;
  try {
    response = await fetch(address(path, options), init);
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new Problem(0, limit.aborted ? "timeout" : "unreachable", "", "");
  }
  if (!response.ok) {
    const problem = await problemOf(response);
    if (response.status === 401 && !options.quiet) onUnauthenticated();
    throw problem;
  }
  return response;
}

async function problemOf(response: Response): Promise<Problem> {
  const requestId = response.headers.get("X-Request-Id");
  const seconds = Number(response.headers.get("Retry-After") ?? "");
  const retryAfter = seconds > 0 ? seconds : null;
  try {
    const document = (await response.json()) as { type: string; title: string; detail: string; errors?: { field: string; message: string }[] };
    return new Problem(response.status, String(document.type).split(":").pop() ?? "", document.title, document.detail, requestId, document.errors ?? [], retryAfter);
  } catch {
    return new Problem(response.status, "", `HTTP ${response.status}`, response.statusText, requestId, [], retryAfter);
  }
}

/** An answer and its version. */
export interface Answer<T> {
  value: T;
  etag: string | null;
}

/** A request whose answer is JSON, or nothing. */
export async function ask<T>(method: string, path: string, options: Options = {}): Promise<Answer<T>> {
  const response = await request(method, path, options);
  const text = response.status === 204 ? "" : await response.text();
  return { value: (text === "" ? undefined : readJson(text)) as T, etag: response.headers.get("ETag") };
}

type Gets = { [P in keyof paths]: paths[P] extends { get: { responses: { 200: { content: { "application/json": infer R } } } } } ? R : never };
export type GetPath = { [P in keyof Gets]: [Gets[P]] extends [never] ? never : P }[keyof Gets];

/** GET, typed by the API's own document. */
export async function get<P extends GetPath>(path: P, options: Options = {}): Promise<Gets[P]> {
  return (await ask<Gets[P]>("GET", path, options)).value;
}
