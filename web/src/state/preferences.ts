// What a reader has chosen: zone, theme, language. Kept by the browser where it lets us (an iframe may forbid it).

import { store } from "./store";

export type Theme = "auto" | "light" | "dark";
export type Language = "en" | "de";

export interface Preferences {
  zone: string; // "local", "UTC" or a name of the IANA database
  theme: Theme;
  language: Language;
}

const KEY = "dispatcher.preferences";

function read(): Preferences {
  const language: Language = navigator.languages.find((each) => /^(en|de)\b/.test(each))?.startsWith("de") ? "de" : "en";
  const chosen: Preferences = { zone: "local", theme: "auto", language };
  try {
    const kept = JSON.parse(localStorage.getItem(KEY) ?? "{}") as Partial<Preferences>;
    if (kept.theme === "light" || kept.theme === "dark") chosen.theme = kept.theme;
    if (kept.language === "en" || kept.language === "de") chosen.language = kept.language;
    if (typeof kept.zone === "string" && zoneExists(kept.zone)) chosen.zone = kept.zone;
  } catch {
    // Nothing kept, or no storage: the defaults.
  }
  return chosen;
}

export function zoneExists(zone: string): boolean {
  if (zone === "local") return true;
  try {
    new Intl.DateTimeFormat("en", { timeZone: zone });
    return true;
  } catch {
    return false;
  }
}

export const preferences = store<Preferences>(read());

export function prefer(changes: Partial<Preferences>): void {
  const next = { ...preferences.get(), ...changes };
  try {
    localStorage.setItem(KEY, JSON.stringify(next));
  } catch {
    // It holds until the page is left.
  }
  preferences.set(next);
}

/** The zone's name, as Intl takes it. */
export function zoneName(): string {
  const { zone } = preferences.get();
  return zone === "local" ? Intl.DateTimeFormat().resolvedOptions().timeZone || "UTC" : zone;
}

export function showTheme(): void {
  document.documentElement.dataset["theme"] = preferences.get().theme;
}
