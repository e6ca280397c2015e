// What a panel shows: an answer, an error, or that it is on its way. Each panel loads by itself, so that an error breaks one only.

import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import { Problem } from "../api/client";
import { place } from "./place";

export interface Loading<T> {
  value: T | undefined;
  problem: Problem | undefined;
  busy: boolean;
  at: number; // when the value came, in Unix milliseconds
  reload: () => void;
}

// Back and forward show what was there, and don't move what the reader had found.
const kept = new Map<string, { value: unknown; at: number }>();
const KEPT = 60;

/** Load what `key` names; null loads nothing. Another key loads anew, and the answer that is no longer wanted is given up. */
export function useLoad<T>(key: string | null, load: (signal: AbortSignal) => Promise<T>, options: { every?: number } = {}): Loading<T> {
  const entry = useRef(place.get());
  const memory = key === null ? "" : `${entry.current.key} ${key}`;
  const [state, setState] = useState<{ key: string | null; value: T | undefined; problem: Problem | undefined; busy: boolean; at: number }>(() => {
    const before = entry.current.returned ? kept.get(memory) : undefined;
    return { key: before ? key : null, value: before?.value as T | undefined, problem: undefined, busy: !before && key !== null, at: before?.at ?? 0 };
  });
  const [turn, setTurn] = useState(0);
  const call = useRef(load);
  call.current = load;
  const shown = useRef(state);
  shown.current = state;

  useEffect(() => {
    if (key === null) return;
    const now = place.get();
    if (now.key !== entry.current.key) entry.current = now;
    const name = `${now.key} ${key}`;
    const before = now.returned && turn === 0 ? kept.get(name) : undefined;
    if (before) {
      if (shown.current.key !== key) setState({ key, value: before.value as T, problem: undefined, busy: false, at: before.at });
      return;
    }
    const abort = new AbortController();
    setState((old) => ({ ...old, value: old.key === key ? old.value : undefined, problem: old.key === key ? old.problem : undefined, key, busy: true }));
    call.current(abort.signal).then(
      (value) => {
        if (abort.signal.aborted) return;
        const at = Date.now();
        kept.delete(name);
        kept.set(name, { value, at });
        if (kept.size > KEPT) kept.delete(kept.keys().next().value!);
        setState({ key, value, problem: undefined, busy: false, at });
      },
      (error: unknown) => {
        if (abort.signal.aborted) return;
        const problem = error instanceof Problem ? error : new Problem(0, "broken", "", error instanceof Error ? error.message : String(error));
        setState((old) => ({ ...old, problem, busy: false }));
      },
    );
    return () => abort.abort();
  }, [key, turn]);

  const reload = useCallback(() => setTurn((n) => n + 1), []);

  useEffect(() => {
    if (!options.every || key === null) return;
    const timer = setInterval(() => {
      if (document.visibilityState === "visible") reload();
    }, options.every);
    return () => clearInterval(timer);
  }, [options.every, key]);

  const mine = state.key === key;
  return { value: mine ? state.value : undefined, problem: mine ? state.problem : undefined, busy: state.busy || (!mine && key !== null), at: state.at, reload };
}

// One clock for all that counts down.
const followers = new Set<() => void>();
const AT_ONCE = 50; // of them in one task: a list has a thousand, and whoever scrolls it waits meanwhile
let ticking: ReturnType<typeof setInterval> | undefined;

let telling = false; // one round at a time, however long it takes

function tell(those: (() => void)[]): void {
  telling = those.length > AT_ONCE;
  if (telling) setTimeout(() => tell(those.slice(AT_ONCE)));
  for (const each of those.slice(0, AT_ONCE)) if (followers.has(each)) each();
}

/** What is said of the present, asked again every second while the page is seen. Only what is said anew is drawn anew. */
export function useTick(say: (now: number) => string): string {
  const latest = useRef(say);
  latest.current = say;
  const text = say(Date.now());
  const [, setText] = useState(text);
  useEffect(() => {
    const tick = () => setText(latest.current(Date.now()));
    followers.add(tick);
    ticking ??= setInterval(() => {
      if (document.visibilityState === "visible" && !telling) tell([...followers]);
    }, 1000);
    return () => {
      followers.delete(tick);
      if (followers.size > 0) return;
      clearInterval(ticking);
      ticking = undefined;
    };
  }, []);
  return text;
}
