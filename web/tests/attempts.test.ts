import { expect, test } from "vitest";
import { curl, headerLines, phasesOf, shellWord } from "../src/state/attempts";
import { eventReader } from "../src/api/sse";
import { stepTimes, values } from "../src/state/figures";

const ATTEMPT = { attempt: 1, time_ms: 0, decision: "delivered" as const };

test("phases follow one another and come to the whole", () => {
  const phases = phasesOf({ ...ATTEMPT, queue_ms: 4, total_ms: 100, dns_ms: 1, connect_ms: 12, tls_ms: 14, first_byte_ms: 90 });
  expect(phases.map((phase) => [phase.name, phase.start, phase.length])).toEqual([
    ["queue", 0, 4],
    ["dns", 4, 1],
    ["connect", 5, 12],
    ["tls", 17, 14],
    ["wait", 31, 63],
    ["body", 94, 10],
  ]);
});

test("an attempt that got nowhere has only what it did", () => {
  expect(phasesOf({ ...ATTEMPT, total_ms: 5000, dns_ms: 5000 }).map((phase) => phase.name)).toEqual(["dns"]);
  expect(phasesOf({ ...ATTEMPT, decision: "parked" })).toEqual([]);
});

test("a command quotes what a shell would read", () => {
  expect(shellWord("it's $HOME")).toBe("'it'\\''s $HOME'");
  const text = curl("https://a.example/x?a=1&b=2", [["webhook-id", "evt_1; rm -rf /"], ["Content-Length", "3"]], new TextEncoder().encode("{}'`$(x)\n"));
  expect(text).toBe("curl -i -X POST 'https://a.example/x?a=1&b=2' \\\n  -H 'webhook-id: evt_1; rm -rf /' \\\n  --data-raw '{}'\\''`$(x)\n'");
  expect(curl("https://a.example/", [], new Uint8Array([255, 0]))).toContain("echo /wA= | base64 -d |");
});

test("header lines in any form", () => {
  expect(headerLines([["a", "1"]])).toEqual([["a", "1"]]);
  expect(headerLines(["a: 1", "b:2"])).toEqual([["a", "1"], ["b", "2"]]);
  expect(headerLines({ a: "1" })).toEqual([["a", "1"]]);
  expect(headerLines(undefined)).toEqual([]);
});

test("a stream's events, however it is cut", () => {
  const text = 'event: tick\ndata: {"a":1}\n\n: comment\n\nevent: heartbeat\ndata: {}\r\n\r\ndata: x\ndata: y\n\n';
  for (let cut = 0; cut < text.length; cut += 1) {
    const read = eventReader();
    expect([...read(text.slice(0, cut)), ...read(text.slice(cut))]).toEqual([
      { event: "tick", data: '{"a":1}' },
      { event: "heartbeat", data: "{}" },
      { event: "message", data: "x\ny" },
    ]);
  }
});

test("steps without a point are zero", () => {
  const answer = { since: "2026-01-31T11:00:00Z", until: "2026-01-31T11:03:00Z", step: "minute" as const };
  const times = stepTimes(answer);
  expect(times).toHaveLength(3);
  const point = { time: "2026-01-31T11:01:00.000Z", attempts: 5 };
  expect(values({ group: {}, points: [point as never], totals: {} as never }, times, (each) => each.attempts)).toEqual([0, 5, 0]);
  expect(values(undefined, times, (each) => each.p50_ms, null)).toEqual([null, null, null]);
});
