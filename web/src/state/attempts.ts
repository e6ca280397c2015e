// What an attempt's record says, for people. Pure.

import type { Attempt } from "../api/types";

export interface Phase {
  name: "queue" | "dns" | "connect" | "tls" | "wait" | "body";
  start: number; // milliseconds from when the delivery was queued
  length: number;
}

/** The phases of an attempt one after the other, as far as it got. */
export function phasesOf(attempt: Attempt): Phase[] {
  const queue = attempt.queue_ms ?? 0;
  const phases: Phase[] = [];
  if (queue > 0) phases.push({ name: "queue", start: 0, length: queue });
  const total = attempt.total_ms;
  if (total === undefined) return phases;
  let at = 0;
  for (const [name, length] of [["dns", attempt.dns_ms], ["connect", attempt.connect_ms], ["tls", attempt.tls_ms]] as const) {
    if (length === undefined) continue;
    phases.push({ name, start: queue + at, length });
    at += length;
  }
  const first = attempt.first_byte_ms;
  const waited = (first ?? total) - at;
  if (waited > 0) phases.push({ name: "wait", start: queue + at, length: waited });
  if (first !== undefined && total > first) phases.push({ name: "body", start: queue + first, length: total - first });
  return phases;
}

/** Header lines, in whatever form they were recorded. */
export function headerLines(value: unknown): [string, string][] {
  if (Array.isArray(value)) {
    return value.flatMap((each): [string, string][] => {
      if (Array.isArray(each) && each.length === 2) return [[String(each[0]), String(each[1])]];
      if (typeof each === "string") {
        const at = each.indexOf(":");
        return at > 0 ? [[each.slice(0, at), each.slice(at + 1).trim()]] : [[each, ""]];
      }
      if (each && typeof each === "object" && "name" in each) return [[String((each as { name: unknown }).name), String((each as { value?: unknown }).value ?? "")]];
      return [];
    });
  }
  if (value && typeof value === "object") return Object.entries(value).map(([name, text]) => [name, String(text)]);
  return [];
}

/** A word of a POSIX shell that stands for exactly this text. */
export function shellWord(text: string): string {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replace(/'/g, "'\\''")}'`;
}

/** The request as a command. The body is text, or base64 for what isn't. */
export function curl(url: string, headers: readonly (readonly [string, string])[], body: Uint8Array): string {
  const lines = [`curl -i -X POST ${shellWord(url)}`];
  for (const [name, value] of headers) {
    if (/^(content-length|host|connection|transfer-encoding)$/i.test(name)) continue;
    lines.push(`-H ${shellWord(value === "" ? `${name};` : `${name}: ${value}`)}`);
  }
  let text: string | null;
  try {
    text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(body);
    if (text.includes("\0")) text = null;
  } catch {
    text = null;
  }
  if (text !== null) {
    lines.push(`--data-raw ${shellWord(text)}`);
    return lines.join(" \\\n  ");
  }
  let binary = "";
  for (const byte of body) binary += String.fromCharCode(byte);
  return `echo ${btoa(binary)} | base64 -d | ${[...lines, "--data-binary @-"].join(" \\\n  ")}`;
}
