// The saved views of a list, as links; and a dialog that saves, renames and deletes them.

import { useEffect, useMemo, useState } from "preact/hooks";
import { filtersOf } from "../state/filters";
import { APP, changed, place, to } from "../state/place";
import { current } from "../state/session";
import { store } from "../state/store";
import { filtersText, MAX_NAME, readViews, renamed, viewOf, viewsKey, withView, type SavedView } from "../state/views";
import { t } from "../text/text";
import { Button, Copy } from "./bits";
import { Dialog } from "./dialog";
import { Input } from "./form";

const kept = store<{ key: string; views: SavedView[] }>({ key: "", views: [] });

function load(key: string): SavedView[] {
  try {
    return readViews(localStorage.getItem(key));
  } catch {
    return []; // an iframe may have no storage: views hold until the page is left
  }
}

function keep(views: SavedView[]): void {
  const { key } = kept.get();
  try {
    localStorage.setItem(key, JSON.stringify(views));
  } catch {
    // They hold until the page is left.
  }
  kept.set({ key, views });
}

// Another tab of the same reader.
addEventListener("storage", (event) => {
  const { key } = kept.get();
  if (event.key === key) kept.set({ key, views: readViews(event.newValue) });
});

/** The views of whoever looks. */
export function useViews(): SavedView[] {
  const state = kept.use();
  const key = viewsKey(APP, current().principal);
  useEffect(() => {
    if (kept.get().key !== key) kept.set({ key, views: load(key) });
  }, [key]);
  return state.key === key ? state.views : [];
}

/** The address of a view from any page: of the time that its page begins with. */
export const viewAddress = (view: SavedView): string => to(view.page, view.filters);

const SHOWN = 6;

export function SavedViews(props: { names: string[] }) {
  const { page, query } = place.use();
  const all = useViews();
  const own = useMemo(() => all.filter((each) => each.page === page), [all, page]);
  const [open, setOpen] = useState(false);
  const filters = filtersOf(query, props.names);
  const here = viewOf(own, page, query, props.names);
  // On the list itself a view keeps the time that is looked at.
  const address = (view: SavedView) => changed({ ...Object.fromEntries(props.names.map((name) => [name, null])), ...view.filters, cursor: null });
  const some = Object.keys(filters).length > 0;
  if (own.length === 0 && !some) return null;
  return (
    <nav class="views" aria-label={t.views.title}>
      {own.slice(0, SHOWN).map((view) => (
        <a key={view.name} class={`chip view${view === here ? " here" : ""}`} href={address(view)} aria-current={view === here ? "true" : undefined}>
          <span class="break">{view.name}</span>
        </a>
      ))}
      <button type="button" class="link small" data-key="v" onClick={() => setOpen(true)}>
        {own.length > SHOWN ? t.more(own.length - SHOWN) : some && !here ? t.views.save : t.views.manage}
      </button>
      {open ? <ViewsDialog own={own} all={all} here={here} filters={filters} address={address} close={() => setOpen(false)} /> : null}
    </nav>
  );
}

interface DialogProps {
  own: SavedView[];
  all: SavedView[];
  here: SavedView | undefined;
  filters: Record<string, string>;
  address: (view: SavedView) => string;
  close: () => void;
}

function ViewsDialog(props: DialogProps) {
  const { page } = place.get();
  const [name, setName] = useState("");
  const wanted = name.trim();
  const taken = props.own.some((each) => each.name === wanted);
  const some = Object.keys(props.filters).length > 0;
  return (
    <Dialog title={t.views.title} close={props.close}>
      <p class="faint small">{t.views.what}</p>
      {some && !props.here ? (
        <form
          onSubmit={(event) => {
            event.preventDefault();
            if (wanted === "") return;
            keep(withView(props.all, { name: wanted, page, filters: props.filters }));
            props.close();
          }}
        >
          <div class="inline">
            <Input label={t.views.name} value={name} set={setName} required maxLength={MAX_NAME} help={taken ? t.views.replaces : undefined} />
          </div>
          <div class="actions end">
            <Button type="submit" kind="main">
              {t.views.saveThis}
            </Button>
          </div>
        </form>
      ) : null}
      {props.own.length > 0 ? (
        <ul class="views-list">
          {props.own.map((view) => (
            <One key={filtersText(view.filters) + view.name} view={view} {...props} />
          ))}
        </ul>
      ) : null}
    </Dialog>
  );
}

function One(props: DialogProps & { view: SavedView }) {
  const { view } = props;
  const [name, setName] = useState<string | null>(null);
  if (name !== null) {
    return (
      <li>
        <form
          class="inline"
          onSubmit={(event) => {
            event.preventDefault();
            keep(renamed(props.all, view, name));
            setName(null);
          }}
        >
          <Input label={t.views.name} value={name} set={setName} required maxLength={MAX_NAME} />
          <Button type="submit" kind="main">
            {t.views.rename}
          </Button>
          <Button onClick={() => setName(null)}>{t.cancel}</Button>
        </form>
      </li>
    );
  }
  return (
    <li>
      <a class="break" href={props.address(view)} onClick={props.close}>
        {view.name}
      </a>
      <span class="faint small break">
        {Object.entries(view.filters)
          .map(([filter, value]) => `${filter}=${value}`)
          .join(" ")}
      </span>
      <span class="actions">
        <Copy label={t.copyLink} text={() => new URL(viewAddress(view), document.baseURI).href} />
        <Button kind="small" onClick={() => setName(view.name)}>
          {t.views.rename}
        </Button>
        <Button kind="small" onClick={() => keep(props.all.filter((each) => each !== view))}>
          {t.views.delete}
        </Button>
      </span>
    </li>
  );
}
