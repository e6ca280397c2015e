// The palette takes an id of any kind, or the name of a page. And the keys of the whole application.

import { useEffect, useRef, useState } from "preact/hooks";
import { guessId } from "../state/filters";
import { APP, go, to } from "../state/place";
import { isOperator, may } from "../state/session";
import { store } from "../state/store";
import { t } from "../text/text";
import { Dialog } from "./dialog";
import { PAGES, pageTitle } from "./shell";
import { useViews, viewAddress } from "./views";
import type { SavedView } from "../state/views";

const shown = store<"" | "palette" | "help">("");

export const openPalette = () => shown.set("palette");
export const openHelp = () => shown.set("help");

export function Overlays() {
  const open = shown.use();
  if (open === "palette") return <Palette />;
  if (open === "help") return <Help />;
  return null;
}

interface Choice {
  text: string;
  hint: string;
  href: string;
}

function choices(text: string, views: readonly SavedView[]): Choice[] {
  const typed = text.trim().toLowerCase();
  const pages = PAGES.filter((each) => each.shown())
    .map((each): Choice => ({ text: pageTitle(each.page), hint: `g ${each.key}`, href: to(each.page) }))
    .concat(APP !== "inspect" && may("read") ? [{ text: t.chart.whoIsSlow, hint: "", href: to("deliveries", { by: "subscription", order: "slowest" }) }] : [])
    .concat(views.map((each) => ({ text: each.name, hint: pageTitle(each.page), href: viewAddress(each) })))
    .filter((each) => typed === "" || each.text.toLowerCase().includes(typed));
  if (typed === "") return pages;
  const ids = guessId(text).filter(({ page }) => APP !== "inspect" || page === "delivery").map(({ page, id }) => ({ text: id, hint: pageTitle(page), href: to(page, { id }) }));
  const lists: Choice[] = [
    { text: text.trim(), hint: t.palette.deliveriesOfEvent, href: to("deliveries", { event: text.trim() }) },
    { text: text.trim(), hint: t.palette.deliveriesOfType, href: to("deliveries", { event_type: text.trim() }) },
    { text: text.trim(), hint: t.palette.deliveriesOfHost, href: to("deliveries", { host: text.trim() }) },
  ];
  if (APP === "inspect") lists.pop();
  if (isOperator()) lists.unshift({ text: text.trim(), hint: t.palette.subscriptionsOfTenant, href: to("subscriptions", { tenant: text.trim() }) });
  // A page's name is meant where one begins like that; everything else is an id.
  const likely = pages.some((each) => each.text.toLowerCase().startsWith(typed));
  return likely ? [...pages, ...ids, ...lists] : [...ids, ...pages, ...lists];
}

function Palette() {
  const [text, setText] = useState("");
  const [at, setAt] = useState(0);
  const found = choices(text, useViews());
  const chosen = Math.min(at, found.length - 1);
  const close = () => shown.set("");
  const take = (href: string) => {
    close();
    go(href);
  };
  return (
    <Dialog title={t.palette.title} close={close}>
      <input
        class="palette"
        autofocus
        role="combobox"
        aria-expanded="true"
        aria-controls="choices"
        aria-activedescendant={found.length > 0 ? `choice-${chosen}` : undefined}
        aria-label={t.palette.title}
        placeholder={t.palette.placeholder}
        value={text}
        spellcheck={false}
        autocomplete="off"
        onInput={(event) => {
          setText(event.currentTarget.value);
          setAt(0);
        }}
        onKeyDown={(event) => {
          if (event.key === "ArrowDown" || event.key === "ArrowUp") {
            event.preventDefault();
            setAt((chosen + (event.key === "ArrowDown" ? 1 : found.length - 1)) % Math.max(1, found.length));
          } else if (event.key === "Enter" && found[chosen]) {
            event.preventDefault();
            take(found[chosen].href);
          }
        }}
      />
      <ul class="choices-list" id="choices" role="listbox" aria-label={t.palette.title}>
        {found.map((each, i) => (
          <li
            key={each.href}
            id={`choice-${i}`}
            role="option"
            aria-selected={i === chosen}
            onClick={() => take(each.href)}
          >
            <span>{each.text}</span>
            <span class="faint">{each.hint}</span>
          </li>
        ))}
      </ul>
    </Dialog>
  );
}

function Help() {
  const rows: [string, string][] = [
    ["?", t.help.title],
    ["/", t.palette.title],
    ["j  k", t.help.rows],
    ["Enter", t.help.enter],
    ["f", t.filters.title],
    ["t", t.range.title],
    ["n", t.help.next],
    [".", t.help.reload],
    ["l", t.tail.title],
    ["v", t.views.title],
    ["Esc", t.close],
    ...PAGES.filter((each) => each.shown()).map((each): [string, string] => [`g ${each.key}`, pageTitle(each.page)]),
  ];
  return (
    <Dialog title={t.help.title} close={() => shown.set("")}>
      <table class="keys">
        <caption class="offscreen">{t.help.title}</caption>
        <tbody>
          {rows.map(([keys, does]) => (
            <tr key={keys}>
              <th scope="row">
                {keys.split(/\s+/).map((each) => (
                  <kbd key={each}>{each}</kbd>
                ))}
              </th>
              <td>{does}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </Dialog>
  );
}

/** Keys that work everywhere but in fields and dialogs. */
export function useKeys(): void {
  const before = useRef("");
  useEffect(() => {
    const pressed = (event: KeyboardEvent) => {
      const target = event.target as HTMLElement;
      if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "k") {
        event.preventDefault();
        openPalette();
        return;
      }
      if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName) || document.querySelector("dialog[open]")) return;
      const first = before.current;
      before.current = "";
      if (first === "g") {
        const page = PAGES.find((each) => each.key === event.key && each.shown());
        if (page) {
          event.preventDefault();
          go(to(page.page));
        }
        return;
      }
      if (event.key === "g") before.current = "g";
      else if (event.key === "?") openHelp();
      else if (event.key === "/") {
        event.preventDefault();
        openPalette();
      } else if (event.key === "j" || event.key === "k") step(event.key === "j" ? 1 : -1);
      else if (event.key === "n") document.querySelector<HTMLElement>("[data-next]")?.click();
      else if (/^[ftlv]$/.test(event.key)) {
        event.preventDefault();
        document.querySelector<HTMLElement>(`[data-key=${event.key}]`)?.click();
      } else if (event.key === ".") document.querySelector<HTMLElement>("[data-reload]")?.click();
    };
    addEventListener("keydown", pressed);
    return () => removeEventListener("keydown", pressed);
  }, []);
}

function step(by: 1 | -1): void {
  const links = [...document.querySelectorAll<HTMLElement>("a.row-link")];
  if (links.length === 0) return;
  const at = links.indexOf(document.activeElement as HTMLElement);
  const next = at < 0 ? (by > 0 ? 0 : links.length - 1) : Math.max(0, Math.min(links.length - 1, at + by));
  links[next]!.focus();
  links[next]!.scrollIntoView({ block: "nearest" });
}
