// The catalogue of event types, and one of them.

import { useState } from "preact/hooks";
import { ask, get, type Problem } from "../api/client";
import { parseTree } from "../api/json";
import type { EventType } from "../api/types";
import { useLoad } from "../state/load";
import { changed, go, place, to } from "../state/place";
import { isHidden, may } from "../state/session";
import { t } from "../text/text";
import { A, Badge, Button, Copy, Empty, Fact, Facts, Note, Reload, Time } from "../ui/bits";
import { Done } from "../ui/audit";
import { asProblem, Confirm } from "../ui/dialog";
import { Area, Check, Input } from "../ui/form";
import { Panel, ProblemNote, Section } from "../ui/panel";
import { Tree } from "../ui/payload";
import { Head } from "../ui/shell";
import { Table } from "../ui/table";

export function EventTypes() {
  const { query } = place.use();
  const load = useLoad("event types", (signal) => get("/v1/event-types", { signal }));
  const [text, setText] = useState("");
  const wanted = text.trim().toLowerCase();
  return (
    <>
      <Head title={t.pages["event-types"]} under={t.eventType.what}>
        <Reload call={load.reload} />
        {may("operator") ? (
          <a class="button main" href={changed({ new: "1" })}>
            {t.eventType.make}
          </a>
        ) : null}
      </Head>
      {query.has("new") && may("operator") ? (
        <Section title={t.eventType.make}>
          <Form before={null} />
        </Section>
      ) : null}
      <Panel title={t.list.title} load={load} lines={6}>
        {(answer) => {
          const rows = answer.event_types.filter((each) => !isHidden(each.name) && (each.name.toLowerCase().includes(wanted) || each.description.toLowerCase().includes(wanted)));
          return (
            <>
              {answer.event_types.length > 10 ? <Input label={t.filters.find} value={text} set={setText} /> : null}
              {rows.length === 0 ? (
                <Empty title={t.eventType.none}>{may("operator") ? <p>{t.eventType.noneHelp}</p> : null}</Empty>
              ) : (
                <Table
                  caption={t.pages["event-types"]}
                  rows={rows}
                  id={(row) => row.name}
                  href={(row) => to("event-type", { id: row.name })}
                  columns={[
                    { name: t.columns.eventType, cell: (row) => <code class="break">{row.name}</code> },
                    { name: t.eventType.description, cell: (row) => row.description.split("\n")[0], wide: true },
                    { name: t.eventType.schema, cell: (row) => (row.schema === null || row.schema === undefined ? "–" : t.yes) },
                    { name: t.columns.state, cell: (row) => (row.deprecated ? <Badge tone="warn">{t.eventType.deprecated}</Badge> : <span class="faint">–</span>) },
                  ]}
                />
              )}
            </>
          );
        }}
      </Panel>
    </>
  );
}

export function EventTypePage() {
  const { query } = place.use();
  const name = query.get("id") ?? "";
  const load = useLoad(`event type ${name}`, (signal) => get("/v1/event-types/{name}", { path: { name }, signal }));
  const [open, setOpen] = useState(false);
  const editing = query.has("edit") && may("operator");
  return (
    <>
      <Head title={name}>
        {may("operator") && !editing ? (
          <>
            <a class="button" href={changed({ edit: "1" })}>
              {t.actions.edit}
            </a>
            <Button kind="danger" onClick={() => setOpen(true)}>
              {t.actions.delete}
            </Button>
          </>
        ) : null}
      </Head>
      {open && load.value ? (
        <Confirm
          title={t.actions.delete}
          label={t.actions.delete}
          danger
          close={() => setOpen(false)}
          act={async () => {
            await ask("DELETE", "/v1/event-types/{name}", { path: { name }, headers: { "If-Match": `"${load.value!.version}"` } });
            go(to("event-types"));
          }}
        >
          <p>{t.eventType.deleteWhat(name)}</p>
        </Confirm>
      ) : null}
      <Panel title={t.pages["event-type"]} load={load} lines={6}>
        {(row) =>
          editing ? (
            <Form before={row} />
          ) : (
            <>
              {row.deprecated ? <Note tone="warn">{t.eventType.deprecatedWhat}</Note> : null}
              <p class="prose">{row.description || t.eventType.noDescription}</p>
              <Facts>
                <Fact name={t.columns.version}>{row.version}</Fact>
                <Fact name={t.columns.updated}>
                  <Time at={row.updated_at} />
                </Fact>
                <Fact name={t.pages.deliveries}>
                  <A page="deliveries" query={{ event_type: row.name }}>
                    {t.show}
                  </A>
                </Fact>
                <Fact name={t.pages.events}>
                  <A page="events" query={{ type: row.name }}>
                    {t.show}
                  </A>
                </Fact>
              </Facts>
              {row.example !== null && row.example !== undefined ? <Document title={t.eventType.example} value={row.example} /> : null}
              {row.schema !== null && row.schema !== undefined ? <Document title={t.eventType.schema} value={row.schema} /> : null}
            </>
          )
        }
      </Panel>
      <Done id={name} />
    </>
  );
}

function Document(props: { title: string; value: unknown }) {
  const text = JSON.stringify(props.value, null, 2);
  return (
    <>
      <h3>
        {props.title} <Copy text={text} />
      </h3>
      <Tree node={parseTree(text)} />
    </>
  );
}

function Form(props: { before: EventType | null }) {
  const { before } = props;
  const pretty = (value: unknown) => (value === null || value === undefined ? "" : JSON.stringify(value, null, 2));
  const [name, setName] = useState(before?.name ?? "");
  const [description, setDescription] = useState(before?.description ?? "");
  const [schema, setSchema] = useState(pretty(before?.schema));
  const [example, setExample] = useState(pretty(before?.example));
  const [deprecated, setDeprecated] = useState(before?.deprecated ?? false);
  const [problem, setProblem] = useState<Problem | null>(null);
  const isJson = (text: string) => {
    if (text.trim() === "") return true;
    try {
      parseTree(text);
      return true;
    } catch {
      return false;
    }
  };
  const wrong = (field: string, text: string) => (isJson(text) ? problem?.of(field) : t.eventType.noJson);
  const save = async () => {
    if (!isJson(schema) || !isJson(example)) return;
    setProblem(null);
    // The documents are sent as they are written, so that no number changes.
    const text = `{"description":${JSON.stringify(description)},"schema":${schema.trim() || "null"},"example":${example.trim() || "null"},"deprecated":${deprecated}}`;
    try {
      await ask("PUT", "/v1/event-types/{name}", { path: { name: name.trim() }, text, headers: before ? { "If-Match": `"${before.version}"` } : { "If-None-Match": "*" } });
      go(to("event-type", { id: name.trim() }));
    } catch (error) {
      setProblem(asProblem(error));
    }
  };
  return (
    <form
      class="form"
      onSubmit={(event) => {
        event.preventDefault();
        void save();
      }}
    >
      {before === null ? <Input label={t.columns.eventType} value={name} set={setName} required placeholder="invoice.paid" wrong={problem?.of("name")} /> : null}
      <Area label={t.eventType.description} value={description} set={setDescription} rows={3} wrong={problem?.of("description")} />
      <Area label={t.eventType.schema} value={schema} set={setSchema} rows={8} wrong={wrong("schema", schema)} help={t.eventType.schemaHelp} />
      <Area label={t.eventType.example} value={example} set={setExample} rows={6} wrong={wrong("example", example)} help={t.eventType.exampleHelp} />
      <Check label={t.eventType.deprecated} help={t.eventType.deprecatedWhat} checked={deprecated} set={setDeprecated} />
      {problem ? <ProblemNote problem={problem} /> : null}
      <div class="actions end">
        <a class="button" href={before ? to("event-type", { id: before.name }) : to("event-types")}>
          {t.cancel}
        </a>
        <Button type="submit" kind="main">
          {t.edit.save}
        </Button>
      </div>
    </form>
  );
}
