// Keys that the API made.

import { useState } from "preact/hooks";
import { ask, get, type Problem } from "../api/client";
import type { Capability, Key } from "../api/types";
import { useLoad } from "../state/load";
import { changed, go, place, to } from "../state/place";
import { may } from "../state/session";
import { t } from "../text/text";
import { A, Badge, Button, Empty, Reload, Time } from "../ui/bits";
import { asProblem, Confirm } from "../ui/dialog";
import { Check, Input, Select } from "../ui/form";
import { Panel, ProblemNote, Section } from "../ui/panel";
import { Head } from "../ui/shell";
import { Table } from "../ui/table";
import { SecretShown } from "./subscription";

const CAPABILITIES: readonly Capability[] = ["publish", "read", "write", "secrets", "resend"];

export function Keys() {
  const { query } = place.use();
  const load = useLoad("keys", (signal) => get("/v1/keys", { signal }));
  const [secret, setSecret] = useState<string | null>(null);
  const [open, setOpen] = useState<Key | null>(null);
  return (
    <>
      <Head title={t.pages.keys} under={t.keys.what}>
        <Reload call={load.reload} />
        {may("operator") ? (
          <a class="button main" href={changed({ new: "1" })}>
            {t.keys.make}
          </a>
        ) : null}
      </Head>
      {secret !== null ? <SecretShown secrets={[secret]} close={() => setSecret(null)} /> : null}
      {query.has("new") && may("operator") && secret === null ? (
        <Make
          made={(found) => {
            setSecret(found);
            go(to("keys"), { replace: true });
            load.reload();
          }}
        />
      ) : null}
      <Panel title={t.list.title} load={load} lines={5}>
        {(answer) =>
          answer.keys.length === 0 ? (
            <Empty title={t.keys.none}>
              <p>{t.keys.noneHelp}</p>
            </Empty>
          ) : (
            <Table
              caption={t.pages.keys}
              rows={answer.keys}
              id={(row) => row.id}
              columns={[
                { name: t.keys.name, cell: (row) => <span class="break">{row.name}</span> },
                { name: t.columns.id, cell: (row) => <code>{row.id}</code> },
                { name: t.keys.scope, cell: (row) => <Badge tone={row.scope === "operator" ? "warn" : "info"}>{t.keys.scopes[row.scope]}</Badge> },
                { name: t.columns.tenant, cell: (row) => (row.tenant ? <A page="deliveries" query={{ tenant: row.tenant }} class="above">{row.tenant}</A> : "–") },
                { name: t.keys.capabilities, cell: (row) => row.capabilities.join(", ") },
                { name: t.columns.created, cell: (row) => <Time at={row.created_at} /> },
                { name: t.audit.by, cell: (row) => row.created_by },
                { name: t.keys.revoke, hidden: !may("operator"), cell: (row) => <Button kind="small" onClick={() => setOpen(row)}>{t.keys.revoke}</Button> },
              ]}
            />
          )
        }
      </Panel>
      {open ? (
        <Confirm
          title={t.keys.revoke}
          label={t.keys.revoke}
          danger
          close={() => setOpen(null)}
          act={async () => {
            await ask("DELETE", "/v1/keys/{id}", { path: { id: open.id } });
            load.reload();
          }}
        >
          <p>{t.keys.revokeWhat(open.name)}</p>
        </Confirm>
      ) : null}
    </>
  );
}

function Make(props: { made: (secret: string) => void }) {
  const [name, setName] = useState("");
  const [scope, setScope] = useState<"operator" | "tenant">("tenant");
  const [tenant, setTenant] = useState("");
  const [capabilities, setCapabilities] = useState<readonly Capability[]>(["read", "write", "secrets", "resend"]);
  const [problem, setProblem] = useState<Problem | null>(null);
  const save = async () => {
    setProblem(null);
    try {
      const body = scope === "tenant" ? { name, scope, tenant: tenant.trim(), capabilities } : { name, scope, ...(capabilities.length === 1 && capabilities[0] === "read" ? { capabilities } : {}) };
      props.made((await ask<{ secret: string }>("POST", "/v1/keys", { body })).value.secret);
    } catch (error) {
      setProblem(asProblem(error));
    }
  };
  return (
    <Section title={t.keys.make}>
      <form
        class="form"
        onSubmit={(event) => {
          event.preventDefault();
          void save();
        }}
      >
        <Input label={t.keys.name} value={name} set={setName} required wrong={problem?.of("name")} help={t.keys.nameHelp} />
        <Select label={t.keys.scope} value={scope} set={(value) => setScope(value as "operator")} options={[["tenant", t.keys.scopes.tenant], ["operator", t.keys.scopes.operator]]} />
        {scope === "tenant" ? (
          <>
            <Input label={t.columns.tenant} value={tenant} set={setTenant} required wrong={problem?.of("tenant")} />
            <fieldset>
              <legend>{t.keys.capabilities}</legend>
              {CAPABILITIES.map((each) => (
                <Check key={each} label={each} help={t.keys.capability[each]} checked={capabilities.includes(each)} set={(on) => setCapabilities(on ? [...capabilities, each] : capabilities.filter((one) => one !== each))} />
              ))}
            </fieldset>
          </>
        ) : (
          <Check label={t.who.readOnly} checked={capabilities.length === 1 && capabilities[0] === "read"} set={(on) => setCapabilities(on ? ["read"] : CAPABILITIES)} />
        )}
        {problem ? <ProblemNote problem={problem} /> : null}
        <div class="actions end">
          <a class="button" href={to("keys")}>
            {t.cancel}
          </a>
          <Button type="submit" kind="main">
            {t.keys.create}
          </Button>
        </div>
      </form>
    </Section>
  );
}
