// The frame around every page: navigation, where one is, and the reader's choices.

import type { ComponentChildren } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { API_ROOT, APP, place } from "../state/place";
import { prefer, preferences, zoneExists, zoneName, type Theme } from "../state/preferences";
import { inkOn } from "../format/colours";
import { current, isOperator, leave, may } from "../state/session";
import { streamState } from "../state/live";
import { language, LANGUAGES, t } from "../text/text";
import { A, Button } from "./bits";
import { Dialog } from "./dialog";
import { Input, Select } from "./form";
import { openHelp, openPalette } from "./palette";

export interface PageLink {
  page: string;
  under?: string[]; // pages that belong to it
  key: string; // after `g`
  shown: () => boolean;
}

export const PAGES: PageLink[] = APP === "inspect" ? [{ page: "deliveries", under: ["delivery"], key: "d", shown: () => true }] : [
  { page: "overview", key: "o", shown: () => true },
  { page: "deliveries", under: ["delivery"], key: "d", shown: () => may("read") },
  { page: "events", under: ["event"], key: "e", shown: () => may("read") },
  { page: "subscriptions", under: ["subscription", "edit"], key: "s", shown: () => may("read") },
  { page: "issues", key: "i", shown: () => may("read") },
  { page: "failing", key: "f", shown: () => may("read") },
  { page: "replays", under: ["replay"], key: "r", shown: () => isOperator() || may("resend") },
  { page: "dead-letters", key: "l", shown: isOperator },
  { page: "event-types", under: ["event-type"], key: "t", shown: () => true },
  { page: "keys", key: "k", shown: () => isOperator() },
  { page: "replicas", key: "c", shown: isOperator },
];

export function pageTitle(page: string): string {
  if (page === "deliveries" && APP === "inspect") return t.inspect.requests;
  if (page === "subscriptions" && APP === "portal") return t.pages.endpoints;
  return Object.hasOwn(t.pages, page) ? t.pages[page as keyof typeof t.pages] : t.pages.missing;
}

export function Shell(props: { children: ComponentChildren }) {
  const { page } = place.use();
  const [open, setOpen] = useState(false);
  const shown = useRef<string | null>(null);
  const session = current();
  const branding = session.portal?.branding;
  const name = branding?.name ?? (APP === "portal" ? t.portalName : APP === "inspect" ? t.inspect.name : "webhook-dispatcher");
  const navigation = session.portal?.navigation ?? true;

  useEffect(() => {
    setOpen(false);
    // Another page: who goes by keyboard is at its beginning, and not before all links of the navigation.
    if (shown.current !== null && shown.current !== page && !document.querySelector("dialog[open]")) document.getElementById("content")?.focus({ preventScroll: true });
    shown.current = page;
    const id = place.get().query.get("id");
    document.title = [id, pageTitle(page), session.environment?.name, name].filter(Boolean).join(" · ");
  }, [page, place.get().key]);

  return (
    <div class={`shell${navigation ? "" : " bare"}`}>
      <a class="skip" href="#content" onClick={(event) => {
        event.preventDefault();
        document.getElementById("content")?.focus();
      }}>
        {t.skip}
      </a>
      <header class="top">
        {navigation ? (
          <button type="button" class="menu" aria-expanded={open} aria-controls="navigation" aria-label={t.menu} onClick={() => setOpen(!open)}>
            ☰
          </button>
        ) : null}
        <a class="brand" href="./">
          {branding?.logo ? <img src={new URL(branding.logo, API_ROOT).href} alt="" /> : null}
          <span>{name}</span>
        </a>
        <Environment />
        {session.portal?.back_url ? (
          <a class="button small" href={session.portal.back_url} data-leave rel="noreferrer">
            ← {t.back}
          </a>
        ) : null}
        <button type="button" class="search" onClick={() => openPalette()}>
          <span>{t.palette.open}</span>
          <kbd>/</kbd>
        </button>
        <Live />
        <Choices />
      </header>
      {navigation ? (
        <nav id="navigation" class={open ? "open" : undefined} aria-label={t.navigation}>
          <ul>
            {PAGES.filter((each) => each.shown()).map((each) => (
              <li key={each.page}>
                <A page={each.page} class={page === each.page || each.under?.includes(page) ? "here" : undefined}>
                  {pageTitle(each.page)}
                </A>
              </li>
            ))}
          </ul>
          <Who />
        </nav>
      ) : null}
      <main id="content" tabIndex={-1}>
        {props.children}
      </main>
    </div>
  );
}

function Environment() {
  const { environment } = current();
  useEffect(() => {
    if (environment?.color && /^#[0-9a-fA-F]{6}$/.test(environment.color)) {
      document.documentElement.style.setProperty("--environment", environment.color);
      document.documentElement.style.setProperty("--on-environment", inkOn(environment.color));
    }
  }, [environment?.color]);
  return environment ? <span class="environment">{environment.name}</span> : null;
}

function Live() {
  const state = streamState.use();
  if (state === "off") return null;
  return (
    <span class={`live ${state}`} role="status" title={t.live[state]}>
      <i />
      <span>{t.live[state]}</span>
    </span>
  );
}

function Who() {
  const { principal, version } = current();
  return (
    <div class="who">
      <p>
        {principal.by === "open" ? t.who.open : (principal.name ?? principal.id ?? t.who.somebody)}
        {principal.tenant ? <span class="block faint">{t.who.tenant(principal.tenant)}</span> : null}
        {principal.read_only ? <span class="block faint">{t.who.readOnly}</span> : null}
      </p>
      {principal.by === "cookie" ? (
        <Button kind="small" onClick={() => void leave()}>
          {t.who.leave}
        </Button>
      ) : null}
      <p class="faint small">
        {version} · <button type="button" class="link" onClick={openHelp}>{t.help.short}</button>
      </p>
    </div>
  );
}

function Choices() {
  const chosen = preferences.use();
  const [open, setOpen] = useState(false);
  const [zone, setZone] = useState(chosen.zone);
  const wrong = zoneExists(zone) && zone !== "" ? undefined : t.choices.noZone;
  return (
    <>
      <button type="button" class="choices" title={`${t.choices.title} · ${zoneName()}`} onClick={() => setOpen(true)}>
        <span class="zone">{chosen.zone === "local" ? zoneName() : chosen.zone}</span> <span aria-hidden="true">⚙</span>
        <span class="offscreen">{t.choices.title}</span>
      </button>
      {open ? (
        <Dialog title={t.choices.title} close={() => setOpen(false)}>
          <Select
            label={t.choices.language}
            value={language}
            set={(value) => prefer({ language: value === "de" ? "de" : "en" })}
            options={LANGUAGES}
          />
          <Select label={t.choices.theme} value={chosen.theme} set={(value) => prefer({ theme: value as Theme })} options={[["auto", t.choices.auto], ["light", t.choices.light], ["dark", t.choices.dark]]} />
          <Input
            label={t.choices.zone}
            value={zone}
            list="zones"
            wrong={wrong}
            help={t.choices.zoneHelp}
            set={(value) => {
              setZone(value);
              if (value !== "" && zoneExists(value)) prefer({ zone: value });
            }}
          />
          <datalist id="zones">
            {["local", "UTC", ...(typeof Intl.supportedValuesOf === "function" ? Intl.supportedValuesOf("timeZone") : [])].map((each) => (
              <option key={each} value={each} />
            ))}
          </datalist>
          <div class="actions">
            {["local", "UTC"].map((each) => (
              <Button key={each} kind="small" onClick={() => {
                setZone(each);
                prefer({ zone: each });
              }}>
                {each === "local" ? t.choices.local : each}
              </Button>
            ))}
          </div>
        </Dialog>
      ) : null}
    </>
  );
}

/** The head of a page: its name, and what can be done with the whole of it. */
export function Head(props: { title: ComponentChildren; children?: ComponentChildren; under?: ComponentChildren }) {
  return (
    <header class="head">
      <div>
        <h1>{props.title}</h1>
        {props.under ? <div class="faint">{props.under}</div> : null}
      </div>
      <div class="actions">{props.children}</div>
    </header>
  );
}

