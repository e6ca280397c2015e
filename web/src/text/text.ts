// The texts in force. Each language is one catalogue; the type of the English one is the type of all.

import { durationText } from "../format/time";
import { preferences, type Language } from "../state/preferences";
import { de } from "./de";
import { en, type Texts } from "./en";

const CATALOGUES: Record<Language, Texts> = { en, de };
export const LANGUAGES: [Language, string][] = [
  ["en", "English"],
  ["de", "Deutsch"],
];

export let t: Texts = CATALOGUES[preferences.get().language];
export let language: Language = preferences.get().language;

preferences.follow((chosen) => {
  language = chosen.language;
  t = CATALOGUES[language];
});

/** A duration in the language in force. */
export function span(ms: number): string {
  const text = durationText(ms);
  return language === "de" ? text.replace(".", ",") : text;
}

/** A word as a heading. */
export const heading = (text: string): string => text.charAt(0).toLocaleUpperCase(language) + text.slice(1);

/** The text for a word of the API; a word that is newer than this page is shown as it is. */
export function word(of: Readonly<Record<string, string>>, name: string): string {
  return Object.hasOwn(of, name) ? of[name]! : name;
}
