// Server-sent events, read by `fetch` so that they carry the same authorization as every request.

import { address, COOKIES, credentials } from "./client";
import { eventReader, type StreamEvent } from "./sse";

const SILENCE = 10_000; // milliseconds after which the stream counts as stalled
const PAUSES = [1000, 2000, 5000, 10_000, 30_000];

export type StreamState = "connecting" | "live" | "stalled" | "off";

/** Follow the stream until `stop` is called. A hidden tab reads nothing. */
export function followStream(onEvent: (event: StreamEvent) => void, onState: (state: StreamState) => void): () => void {
  let abort: AbortController | null = null;
  let timer: ReturnType<typeof setTimeout> | undefined;
  let silence: ReturnType<typeof setTimeout> | undefined;
  let failures = 0;
  let stopped = false;

  const heard = () => {
    clearTimeout(silence);
    silence = setTimeout(() => {
      onState("stalled");
      abort?.abort();
    }, SILENCE);
  };
  const again = () => {
    if (stopped || document.visibilityState !== "visible") return;
    clearTimeout(timer);
    timer = setTimeout(() => void read(), PAUSES[Math.min(failures, PAUSES.length - 1)]);
    failures += 1;
  };
  const read = async () => {
    const mine = new AbortController();
    abort = mine;
    heard();
    try {
      const headers = new Headers({ Accept: "text/event-stream" });
      if (credentials.bearer !== null) headers.set("Authorization", `Bearer ${credentials.bearer}`);
      const response = await fetch(address("/v1/stream"), { headers, signal: mine.signal, cache: "no-store", credentials: COOKIES, referrerPolicy: "no-referrer" });
      if ([401, 403, 404, 409].includes(response.status) || response.body === null) {
        clearTimeout(silence);
        onState("off");
        return;
      }
      if (!response.ok) throw new Error(String(response.status));
      const text = response.body.pipeThrough(new TextDecoderStream()).getReader();
      const take = eventReader();
      onState("live");
      for (;;) {
        const { done, value } = await text.read();
        if (done) break;
        heard();
        failures = 0;
        onState("live");
        for (const event of take(value)) onEvent(event);
      }
      onState("connecting");
    } catch {
      if (!stopped && document.visibilityState === "visible") onState("stalled");
    }
    clearTimeout(silence);
    if (mine === abort) again();
  };
  const visibility = () => {
    clearTimeout(timer);
    clearTimeout(silence);
    abort?.abort();
    abort = null;
    if (document.visibilityState === "visible") {
      failures = 0;
      onState("connecting");
      void read();
    }
  };
  document.addEventListener("visibilitychange", visibility);
  if (document.visibilityState === "visible") void read();
  return () => {
    stopped = true;
    document.removeEventListener("visibilitychange", visibility);
    clearTimeout(timer);
    clearTimeout(silence);
    abort?.abort();
  };
}
