// The small parts: links, times, numbers, badges, buttons.

import type { ComponentChildren } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import type { DeliveryState } from "../api/types";
import { bytesText, countText } from "../format/numbers";
import { instant, timeText, utcText, type Precision } from "../format/time";
import { useTick } from "../state/load";
import { to } from "../state/place";
import { zoneName } from "../state/preferences";
import { language, span, t, word } from "../text/text";

export function A(props: { page: string; query?: Record<string, string | number | null | undefined>; children: ComponentChildren; class?: string | undefined; title?: string }) {
  return (
    <a href={to(props.page, props.query)} class={props.class} title={props.title}>
      {props.children}
    </a>
  );
}

/** An instant in the reader's zone; UTC on hover. */
export function Time(props: { at: string | number | null | undefined; precision?: Precision }) {
  const ms = typeof props.at === "number" ? props.at : instant(props.at);
  if (ms === null) return <span class="faint">–</span>;
  return (
    <time dateTime={utcText(ms)} title={utcText(ms)}>
      {timeText(ms, zoneName(), props.precision)}
    </time>
  );
}

/** How long until or since an instant, counted on. What is to come and is due already comes at any moment. */
export function Distance(props: { at: string | number | null | undefined; coming?: boolean }) {
  const ms = typeof props.at === "number" ? props.at : instant(props.at);
  const text = useTick((now) => (ms === null ? "" : props.coming && ms <= now ? t.time.due : distanceText(ms, now)));
  if (ms === null) return null;
  return <span title={`${timeText(ms, zoneName())} · ${utcText(ms)}`}>{text}</span>;
}

export function distanceText(ms: number, now: number): string {
  const distance = Math.round((ms - now) / 1000) * 1000;
  if (distance === 0) return t.time.now;
  const size = span(Math.abs(distance));
  return distance > 0 ? t.time.in(size) : t.time.ago(size);
}

/** A name that may be long: it breaks at dots and underscores first, and is whole on hover. */
export function Words(props: { of: string }) {
  const parts = props.of.split(/(?<=[._:/-])/);
  return (
    <span class="words" title={props.of}>
      {parts.map((part, at) => (at === 0 ? part : [<wbr key={at} />, part]))}
    </span>
  );
}

export function Bytes(props: { of: number }) {
  return <span title={`${countText(props.of, language)} B`}>{bytesText(props.of, language)}</span>;
}

export function Duration(props: { ms: number | null | undefined }) {
  return props.ms === null || props.ms === undefined ? <span class="faint">–</span> : <>{span(props.ms)}</>;
}

export type Tone = "good" | "bad" | "warn" | "info" | "calm";

export function Badge(props: { tone: Tone; children: ComponentChildren; title?: string }) {
  return (
    <span class={`badge ${props.tone}`} title={props.title}>
      {props.children}
    </span>
  );
}

const STATE_TONES: Record<DeliveryState, Tone> = { delivered: "good", retrying: "warn", pending: "info", dead: "bad", dropped: "calm" };

export function StateBadge(props: { state: DeliveryState }) {
  return <Badge tone={STATE_TONES[props.state] ?? "calm"}>{word(t.states, props.state)}</Badge>;
}

const STATUS_TONES: Record<string, Tone> = { active: "good", paused: "info", pending: "info", disabled: "bad" };

export function StatusBadge(props: { status: string }) {
  return <Badge tone={STATUS_TONES[props.status] ?? "calm"}>{word(t.statuses, props.status)}</Badge>;
}

interface ButtonProps {
  kind?: "main" | "danger" | "plain" | "small";
  type?: "button" | "submit";
  disabled?: boolean;
  onClick?: () => void;
  children: ComponentChildren;
  "aria-expanded"?: boolean;
  "aria-pressed"?: boolean;
  "data-key"?: string; // that clicks it, wherever the focus is
  "data-first"?: boolean | undefined; // it has the focus in its dialog
}

export function Button({ kind = "plain", type = "button", "data-first": first, ...rest }: ButtonProps) {
  return <button type={type} class={`button ${kind}`} {...(first ? { "data-first": "" } : {})} {...rest} />;
}

/** Loads what the page shows anew, also by the key `.`. */
export function Reload(props: { call: () => void }) {
  return (
    <button type="button" class="button small" data-reload onClick={props.call}>
      {t.reload}
    </button>
  );
}

/** Copies a text, and says so. */
export function Copy(props: { text: string | (() => string | Promise<string>); label?: string }) {
  const [done, setDone] = useState<"" | "done" | "failed">("");
  const timer = useRef<ReturnType<typeof setTimeout>>(undefined);
  useEffect(() => () => clearTimeout(timer.current), []);
  const copy = async () => {
    let outcome: "done" | "failed" = "done";
    try {
      await copyText(typeof props.text === "string" ? props.text : await props.text());
    } catch {
      outcome = "failed";
    }
    setDone(outcome);
    timer.current = setTimeout(() => setDone(""), 2000);
  };
  const label = done === "done" ? t.copied : done === "failed" ? t.copyFailed : (props.label ?? t.copy);
  return (
    <button type="button" class={props.label ? "button small" : "copy"} aria-label={props.label ? undefined : label} title={label} onClick={() => void copy()}>
      {props.label ? label : done === "done" ? "✓" : done === "failed" ? "✕" : <CopySign />}
    </button>
  );
}

function CopySign() {
  return (
    <svg class="sign" viewBox="0 0 16 16" aria-hidden="true">
      <path d="M5.5 5.5v-3h8v8h-3M2.5 5.5h8v8h-8z" />
    </svg>
  );
}

async function copyText(text: string): Promise<void> {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  // Without TLS there is no clipboard for scripts: the old way, through a field.
  const field = document.createElement("textarea");
  field.value = text;
  field.className = "offscreen";
  document.body.append(field);
  field.select();
  const copied = document.execCommand("copy");
  field.remove();
  if (!copied) throw new Error("not copied");
}

/** An id that can be copied. */
export function Id(props: { id: string; page?: string; query?: Record<string, string> }) {
  return (
    <span class="id">
      {props.page ? (
        <A page={props.page} query={props.query ?? { id: props.id }}>
          {props.id}
        </A>
      ) : (
        <code>{props.id}</code>
      )}
      <Copy text={props.id} />
    </span>
  );
}

/** Name and value, for facts. */
export function Facts(props: { children: ComponentChildren }) {
  return <dl class="facts">{props.children}</dl>;
}

export function Fact(props: { name: string; children: ComponentChildren; wide?: boolean }) {
  return (
    <div class={props.wide ? "wide" : undefined}>
      <dt>{props.name}</dt>
      <dd>{props.children}</dd>
    </div>
  );
}

export function Note(props: { tone: Tone; children: ComponentChildren; title?: string; actions?: ComponentChildren; live?: boolean }) {
  return (
    <div class={`note ${props.tone}`} role={props.live ? "status" : undefined}>
      <div>
        {props.title ? <strong>{props.title}</strong> : null}
        {props.title ? " " : null}
        {props.children}
      </div>
      {props.actions ? <div class="actions">{props.actions}</div> : null}
    </div>
  );
}

export function Empty(props: { title: string; children?: ComponentChildren }) {
  return (
    <div class="empty">
      <p class="strong">{props.title}</p>
      {props.children}
    </div>
  );
}
