// The stream, once for the whole application: pages hear of what is new, and decide themselves what to do with it.

import type { StreamEvent } from "../api/sse";
import { followStream, type StreamState } from "../api/stream";
import { useEffect, useRef, useState } from "preact/hooks";
import { store } from "./store";

export const streamState = store<StreamState>("off");

/** Whether the stream tells of everything. With a shared history each process hears of what it indexes itself. */
export const streamComplete = store(true);
const listeners = new Set<(event: StreamEvent) => void>();
let stop: (() => void) | null = null;

export function startStream(): void {
  stop?.();
  streamState.set("connecting");
  stop = followStream(
    (event) => {
      if (event.event === "hello") streamComplete.set((JSON.parse(event.data) as { complete?: boolean }).complete !== false);
      for (const call of [...listeners]) call(event);
    },
    (state) => {
      if (streamState.get() !== state) streamState.set(state);
    },
  );
}

export function stopStream(): void {
  stop?.();
  stop = null;
  streamState.set("off");
}

export function useStream(call: (event: StreamEvent) => void): void {
  const latest = useRef(call);
  latest.current = call;
  useEffect(() => {
    const listener = (event: StreamEvent) => latest.current(event);
    listeners.add(listener);
    return () => void listeners.delete(listener);
  }, []);
}

export interface StreamRow {
  id: string;
  subscription: string;
  tenant: string | null;
  event_id: string;
  event_type: string;
  state: string;
  status: number | null;
  reason: string | null; // why it ended or waits, else the failure
  failure: string | null;
  attempt: number;
  host: string | null;
  duration_ms: number | null; // null without a request
  at: string;
}

/** How many deliveries that a list would show have come since `since`; the list itself isn't touched. At least: the stream leaves out what it has no room for. */
export function useNews(wanted: (row: StreamRow) => boolean, key: string): { count: number; atLeast: boolean } {
  const [news, setNews] = useState({ key, count: 0, atLeast: false });
  const seen = useRef(new Set<string>());
  useEffect(() => {
    seen.current.clear();
    setNews({ key, count: 0, atLeast: false });
  }, [key]);
  useStream((event) => {
    if (event.event !== "deliveries") return;
    const { deliveries, more } = JSON.parse(event.data) as { deliveries: StreamRow[]; more: number };
    for (const row of deliveries) if (wanted(row) && seen.current.size < 1000) seen.current.add(row.id);
    const count = seen.current.size;
    setNews((old) => (old.count === count && more === 0 ? old : { key, count, atLeast: old.atLeast || count >= 1000 || (more > 0 && count > 0) }));
  });
  return news.key === key ? news : { count: 0, atLeast: false };
}
