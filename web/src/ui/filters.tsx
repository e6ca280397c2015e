// The filters of a list: what is in the address, as fields; and each that is set, as a link that takes it out.

import { useLayoutEffect, useRef, useState } from "preact/hooks";
import { countText } from "../format/numbers";
import { filtersOf, PAGE_SIZES, pageSize } from "../state/filters";
import { changed, go, place } from "../state/place";
import { language, t, word } from "../text/text";
import { Button } from "./bits";
import { Input, Select } from "./form";
import { SavedViews } from "./views";

export interface FilterField {
  name: string;
  label: string;
  options?: readonly (readonly [string, string])[];
  help?: string;
}

export function Filters(props: { fields: FilterField[] }) {
  const { query } = place.use();
  const names = props.fields.map((field) => field.name);
  const set = filtersOf(query, names);
  const key = JSON.stringify(set);
  const [open, setOpen] = useState(false);
  return (
    <div class="filters">
      <div class="chips">
        <Button kind="small" data-key="f" aria-expanded={open} onClick={() => setOpen(!open)}>
          {t.filters.title}
        </Button>
        {Object.entries(set).map(([name, value]) => {
          const field = props.fields.find((each) => each.name === name)!;
          const shown = field.options?.find(([each]) => each === value)?.[1] ?? value;
          return (
            <a key={name} class="chip" href={changed({ [name]: null, cursor: null })} title={t.filters.remove}>
              <span class="offscreen">{t.filters.remove}</span> {field.label}: <strong class="break">{shown}</strong> <span aria-hidden="true">✕</span>
            </a>
          );
        })}
        {Object.keys(set).length > 1 ? (
          <a class="chip plain" href={changed({ ...Object.fromEntries(names.map((name) => [name, null])), cursor: null })}>
            {t.filters.clear}
          </a>
        ) : null}
      </div>
      <SavedViews names={names} />
      {open ? <FilterForm key={key} fields={props.fields} set={set} close={() => setOpen(false)} /> : null}
    </div>
  );
}

function FilterForm(props: { fields: FilterField[]; set: Record<string, string>; close: () => void }) {
  const [values, setValues] = useState<Record<string, string>>(props.set);
  const form = useRef<HTMLFormElement>(null);
  useLayoutEffect(() => {
    form.current?.querySelector<HTMLElement>("select, input")?.focus();
    return () => document.querySelector<HTMLElement>("[data-key=f]")?.focus();
  }, []);
  const put = (name: string) => (value: string) => setValues((old) => ({ ...old, [name]: value }));
  return (
    <form
      ref={form}
      class="filter-form"
      onSubmit={(event) => {
        event.preventDefault();
        go(changed({ ...Object.fromEntries(props.fields.map((field) => [field.name, values[field.name]?.trim() || null])), cursor: null }));
        props.close();
      }}
    >
      {props.fields.map((field) =>
        field.options ? (
          <Select key={field.name} label={field.label} value={values[field.name] ?? ""} set={put(field.name)} options={[["", t.filters.any], ...field.options]} help={field.help} />
        ) : (
          <Input key={field.name} label={field.label} value={values[field.name] ?? ""} set={put(field.name)} help={field.help} />
        ),
      )}
      <div class="actions end">
        <Button onClick={props.close}>{t.cancel}</Button>
        <Button type="submit" kind="main">
          {t.apply}
        </Button>
      </div>
    </form>
  );
}

export function stateOptions(): [string, string][] {
  return [["failed", t.states.failed], ...(["pending", "retrying", "delivered", "dead", "dropped"] as const).map((state): [string, string] => [state, word(t.states, state)])];
}

/** The way to the next page, and back to the first. */
export function Pager(props: { next: string | null; shown: number; end?: string; sizes?: boolean }) {
  const { query } = place.use();
  const size = pageSize(query);
  const paged = query.has("cursor");
  return (
    <nav class="pager" aria-label={t.pager.title}>
      {paged ? <a class="button small" href={changed({ cursor: null })}>{t.pager.first}</a> : null}
      {props.next !== null ? (
        <a class="button small" data-next href={changed({ cursor: props.next })}>
          {props.shown === 0 ? t.pager.lookOn : t.pager.next}
        </a>
      ) : (
        <span class="faint small">{props.end ?? t.pager.end}</span>
      )}
      {props.sizes ? (
        <span class="faint small">
          {t.pager.rows}{" "}
          {PAGE_SIZES.map((each) => (
            <>
              {" "}
              <a key={each} href={changed({ limit: each === PAGE_SIZES[0] ? null : each })} aria-current={each === size ? "true" : undefined}>
                {countText(each, language)}
              </a>
            </>
          ))}
        </span>
      ) : null}
    </nav>
  );
}
