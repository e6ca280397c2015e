// A new subscription, or another form of one that is there.

import { useEffect, useMemo, useState } from "preact/hooks";
import { ask, get, Problem } from "../api/client";
import type { EventType, Subscription } from "../api/types";
import { readDuration } from "../format/time";
import { useLoad } from "../state/load";
import { APP, go, place, to } from "../state/place";
import { isHidden, isOperator } from "../state/session";
import { t } from "../text/text";
import { A, Button, Note } from "../ui/bits";
import { asProblem } from "../ui/dialog";
import { Area, Check, Input, Select } from "../ui/form";
import { Panel, ProblemNote, Section } from "../ui/panel";
import { Schedule } from "../ui/schedule";
import { Head } from "../ui/shell";
import { SecretShown } from "./subscription";

export function Edit() {
  const { query } = place.use();
  const id = query.get("id");
  const load = useLoad(id === null ? null : `subscription ${id}`, (signal) => get("/v1/subscriptions/{id}", { path: { id: id! }, signal }));
  const title = id === null ? t.actions.newSubscription : t.edit.title(id);
  return (
    <>
      <Head title={title} />
      {id === null ? (
        <Section title={t.edit.fields}>
          <Form before={null} />
        </Section>
      ) : (
        <Panel title={t.edit.fields} load={load} lines={8}>
          {(row) => (row.managed === "file" ? <Note tone="warn">{t.subscription.fileManaged}</Note> : <Form before={row} />)}
        </Panel>
      )}
    </>
  );
}

interface Values {
  id: string;
  tenant: string;
  url: string;
  types: string[];
  headers: string;
  payload: string;
  signatures: string[];
  redirects: string;
  timeout: string;
  maxInFlight: string;
  rateLimit: string;
  schedule: string;
  jitter: string;
  validate: boolean;
  paused: boolean;
}

const SIGNATURES = ["v1", "v1a", "github"] as const;

function valuesOf(row: Subscription | null): Values {
  return {
    id: row?.id ?? "",
    tenant: row?.tenant ?? "",
    url: row?.url ?? "",
    types: row ? [...row.event_types] : [],
    headers: row ? Object.entries(row.headers).map(([name, value]) => `${name}: ${value}`).join("\n") : "",
    payload: row?.payload ?? "full",
    signatures: row ? [...row.signatures] : ["v1"],
    redirects: row?.redirects ?? "never",
    timeout: row?.timeout ?? "",
    maxInFlight: row ? String(row.max_in_flight) : "",
    rateLimit: row?.rate_limit ?? "",
    schedule: row?.retry?.schedule?.join(", ") ?? "",
    jitter: row?.retry?.jitter === null || row?.retry?.jitter === undefined ? "" : String(row.retry.jitter),
    validate: row?.validate ?? false,
    paused: false,
  };
}

/** Lines of `name: value`, or null with what is wrong. */
export function readHeaders(text: string): Record<string, string> | null {
  const found: Record<string, string> = {};
  for (const line of text.split("\n")) {
    if (line.trim() === "") continue;
    const at = line.indexOf(":");
    if (at < 1) return null;
    found[line.slice(0, at).trim()] = line.slice(at + 1).trim();
  }
  return found;
}

/** What the API gets: of a change only what differs. */
export function documentOf(values: Values, before: Subscription | null): Record<string, unknown> {
  const old = valuesOf(before);
  const document: Record<string, unknown> = {};
  const put = (name: string, now: unknown, was: unknown, empty: boolean) => {
    if (before === null ? !empty : JSON.stringify(now) !== JSON.stringify(was)) document[name] = empty ? null : now;
  };
  put("url", values.url.trim(), old.url, false);
  put("event_types", values.types, old.types, false);
  put("tenant", values.tenant.trim(), old.tenant, values.tenant.trim() === "");
  const headers = readHeaders(values.headers) ?? {};
  const oldHeaders = readHeaders(old.headers) ?? {};
  if (before === null) {
    if (Object.keys(headers).length > 0) document["headers"] = headers;
  } else if (values.headers !== old.headers) {
    // A merge patch: what is gone has to be said.
    document["headers"] = { ...Object.fromEntries(Object.keys(oldHeaders).filter((name) => !(name in headers)).map((name) => [name, null])), ...headers };
  }
  put("payload", values.payload, old.payload, before === null && values.payload === "full");
  put("signatures", values.signatures, old.signatures, values.signatures.length === 0);
  put("redirects", values.redirects, old.redirects, before === null && values.redirects === "never");
  put("timeout", values.timeout.trim(), old.timeout, values.timeout.trim() === "");
  put("max_in_flight", Number(values.maxInFlight), Number(old.maxInFlight), values.maxInFlight.trim() === "");
  put("rate_limit", values.rateLimit.trim(), old.rateLimit, values.rateLimit.trim() === "");
  put("validate", values.validate, old.validate, before === null && !values.validate);
  if (values.schedule !== old.schedule || values.jitter !== old.jitter) {
    const schedule = values.schedule.split(/[\s,]+/).filter(Boolean);
    const retry = { schedule: schedule.length > 0 ? schedule : null, jitter: values.jitter.trim() === "" ? null : Number(values.jitter) };
    document["retry"] = retry.schedule === null && retry.jitter === null ? null : retry;
  }
  if (before === null) {
    if (values.id.trim() !== "") document["id"] = values.id.trim();
    if (values.paused) document["status"] = "paused";
  }
  return document;
}

function Form(props: { before: Subscription | null }) {
  const { before } = props;
  const [values, setValues] = useState(() => valuesOf(before));
  const [problem, setProblem] = useState<Problem | null>(null);
  const [busy, setBusy] = useState(false);
  const [made, setMade] = useState<{ id: string; secrets: string[] } | null>(null);
  // The same form sent again makes no second subscription.
  const idempotency = useMemo(() => `console-${crypto.getRandomValues(new Uint32Array(4)).join("-")}`, []);
  const put = <K extends keyof Values>(name: K) => (value: Values[K]) => setValues((old) => ({ ...old, [name]: value }));
  const wrong = (field: string) => problem?.of(field);
  const headersWrong = readHeaders(values.headers) === null ? t.edit.headersWrong : wrong("headers");
  const waits = values.schedule.split(/[\s,]+/).filter(Boolean);

  useEffect(() => {
    const warn = (event: BeforeUnloadEvent) => {
      if (!made && JSON.stringify(values) !== JSON.stringify(valuesOf(before))) event.preventDefault();
    };
    addEventListener("beforeunload", warn);
    return () => removeEventListener("beforeunload", warn);
  }, [values, made]);

  const save = async () => {
    if (readHeaders(values.headers) === null) return;
    setBusy(true);
    setProblem(null);
    try {
      const body = documentOf(values, before);
      if (before === null) {
        const { value } = await ask<{ subscription: Subscription; secrets: string[] }>("POST", "/v1/subscriptions", { body, headers: { "Idempotency-Key": idempotency } });
        setMade({ id: value.subscription.id, secrets: value.secrets });
      } else {
        await ask("PATCH", "/v1/subscriptions/{id}", { path: { id: before.id }, body, type: "application/merge-patch+json", headers: { "If-Match": `"${before.version}"` } });
        go(to("subscription", { id: before.id }));
      }
    } catch (error) {
      setProblem(asProblem(error));
    }
    setBusy(false);
  };

  if (made) {
    return (
      <>
        <Note tone="good" title={t.edit.made} live>
          <A page="subscription" query={{ id: made.id }}>{made.id}</A>
        </Note>
        <SecretShown secrets={made.secrets} close={() => go(to("subscription", { id: made.id }))} />
      </>
    );
  }
  return (
    <form
      class="form"
      onSubmit={(event) => {
        event.preventDefault();
        void save();
      }}
    >
      <Input label={t.columns.url} value={values.url} set={put("url")} required type="url" placeholder="https://example.com/webhooks" wrong={wrong("url")} help={t.edit.urlHelp} />
      <Types chosen={values.types} set={put("types")} wrong={wrong("event_types")} />
      {before === null && isOperator() ? (
        <div class="halves">
          <Input label={t.columns.id} value={values.id} set={put("id")} wrong={wrong("id")} help={t.edit.idHelp} placeholder="sub_…" />
          <Input label={t.columns.tenant} value={values.tenant} set={put("tenant")} wrong={wrong("tenant")} help={t.edit.tenantHelp} />
        </div>
      ) : null}
      {before === null ? <Check label={t.edit.paused} checked={values.paused} set={put("paused")} /> : null}
      <Check label={t.edit.validate} help={t.edit.validateHelp} checked={values.validate} set={put("validate")} />
      <details class="fold">
        <summary>{t.edit.delivery}</summary>
        <Area label={t.edit.headers} value={values.headers} set={put("headers")} rows={3} wrong={headersWrong} help={t.edit.headersHelp} />
        <div class="halves">
          <Select label={t.edit.payload} value={values.payload} set={put("payload")} options={[["full", t.edit.payloads.full], ["thin", t.edit.payloads.thin]]} />
          <Select label={t.edit.redirects} value={values.redirects} set={put("redirects")} options={[["never", t.edit.redirect.never], ["same-origin", t.edit.redirect["same-origin"]]]} />
          <Input label={t.edit.timeout} value={values.timeout} set={put("timeout")} wrong={wrong("timeout") ?? (values.timeout !== "" && Number.isNaN(readDuration(values.timeout)) ? t.noDuration : undefined)} placeholder="15s" help={t.edit.emptyDefault} />
          <Input label={t.edit.maxInFlight} value={values.maxInFlight} set={put("maxInFlight")} type="number" min="1" wrong={wrong("max_in_flight")} help={t.edit.emptyDefault} />
          <Input label={t.edit.rateLimit} value={values.rateLimit} set={put("rateLimit")} wrong={wrong("rate_limit")} placeholder="100/s" help={t.edit.emptyNone} />
          <fieldset>
            <legend>{t.edit.signatures}</legend>
            {SIGNATURES.map((name) => (
              <Check
                key={name}
                label={t.edit.signature[name]}
                checked={values.signatures.includes(name)}
                set={(on) => put("signatures")(on ? [...values.signatures, name] : values.signatures.filter((each) => each !== name))}
              />
            ))}
          </fieldset>
        </div>
      </details>
      <details class="fold" open={values.schedule !== ""}>
        <summary>{t.edit.retry}</summary>
        <Input label={t.edit.schedule} value={values.schedule} set={put("schedule")} wrong={wrong("retry")} placeholder="5s, 1m, 5m, 30m, 2h, 12h, 1d" help={t.edit.scheduleHelp} />
        {waits.length > 0 ? <Schedule waits={waits} /> : null}
        <Input label={t.edit.jitter} value={values.jitter} set={put("jitter")} type="number" min="0" max="1" step="0.01" help={t.edit.jitterHelp} />
      </details>
      {problem ? <ProblemNote problem={problem} /> : null}
      <div class="actions end">
        <a class="button" href={before ? to("subscription", { id: before.id }) : to("subscriptions")}>
          {t.cancel}
        </a>
        <Button type="submit" kind="main" disabled={busy}>
          {before === null ? t.edit.create : t.edit.save}
        </Button>
      </div>
    </form>
  );
}

/** Which event types: from the catalogue, or patterns of one's own. */
function Types(props: { chosen: string[]; set: (types: string[]) => void; wrong: string | undefined }) {
  const { chosen, set } = props;
  const load = useLoad("event types", (signal) => get("/v1/event-types", { signal }));
  const [own, setOwn] = useState("");
  const types = (load.value?.event_types ?? []).filter((each: EventType) => !each.deprecated && !isHidden(each.name));
  const add = () => {
    const name = own.trim();
    if (name !== "" && !chosen.includes(name)) set([...chosen, name]);
    setOwn("");
  };
  const families = [...new Set(types.map((each) => each.name.split(".")[0]!).filter((name) => types.filter((each) => each.name.startsWith(`${name}.`)).length > 1))].map((name) => `${name}.*`);
  return (
    <fieldset class={props.wrong ? "wrong" : undefined}>
      <legend>{t.columns.eventTypes}</legend>
      {chosen.length > 0 ? (
        <div class="chips">
          {chosen.map((name) => (
            <button type="button" class="chip" key={name} onClick={() => set(chosen.filter((each) => each !== name))}>
              <span class="offscreen">{t.edit.removeType}</span> <code>{name}</code> <span aria-hidden="true">✕</span>
            </button>
          ))}
        </div>
      ) : (
        <p class="faint">{t.edit.noTypes}</p>
      )}
      {props.wrong ? (
        <p class="wrong-text" role="alert">
          {props.wrong}
        </p>
      ) : null}
      <div class="type-picker">
        {["*", ...families].map((name) => (
          <Check key={name} label={<code>{name}</code>} help={name === "*" ? t.edit.everyType : t.edit.family(name.slice(0, -2))} checked={chosen.includes(name)} set={(on) => set(on ? [...chosen, name] : chosen.filter((each) => each !== name))} />
        ))}
        {types.map((each) => (
          <Check key={each.name} label={<code>{each.name}</code>} help={each.description.split("\n")[0]} checked={chosen.includes(each.name)} set={(on) => set(on ? [...chosen, each.name] : chosen.filter((name) => name !== each.name))} />
        ))}
      </div>
      <div class="inline">
        <Input
          label={t.edit.ownType}
          value={own}
          set={setOwn}
          placeholder={APP === "portal" ? "" : "invoice.*"}
          onKeyDown={(event) => {
            if (event.key === "Enter") {
              event.preventDefault();
              add();
            }
          }}
        />
        <Button onClick={add} disabled={own.trim() === ""}>
          {t.add}
        </Button>
      </div>
    </fieldset>
  );
}
