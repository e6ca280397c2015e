// One subscription: how it goes, what it is, and what can be done with it.

import { useEffect, useRef, useState } from "preact/hooks";
import { ask, get } from "../api/client";
import type { Ping, Statistics, Subscription, SubscriptionDetail } from "../api/types";
import { countText, percentText, rateText } from "../format/numbers";
import { readDuration } from "../format/time";
import { rangeOf, rangeQuery } from "../state/filters";
import { secondsOf, stepTimes, values } from "../state/figures";
import { useLoad } from "../state/load";
import { go, place, to } from "../state/place";
import { isOperator, may } from "../state/session";
import { failureText } from "../state/verdict";
import { language, span, t, word } from "../text/text";
import { A, Badge, Button, Copy, Duration, Fact, Facts, Id, Note, Reload, StatusBadge, Time } from "../ui/bits";
import { Done } from "../ui/audit";
import { Chart } from "../ui/chart";
import { columnsOf, DeliveryTable } from "../ui/deliveries";
import { Confirm, Dialog } from "../ui/dialog";
import { Area, Check, Input } from "../ui/form";
import { Knowledge, Panel, ProblemNote } from "../ui/panel";
import { Text } from "../ui/payload";
import { RangePicker } from "../ui/range";
import { Head } from "../ui/shell";
import { Table } from "../ui/table";
import { Schedule } from "../ui/schedule";
import { ClassChart } from "./deliveries";

export function SubscriptionPage() {
  const { query } = place.use();
  const id = query.get("id") ?? "";
  const load = useLoad(`subscription ${id}`, (signal) => get("/v1/subscriptions/{id}", { path: { id }, signal }));
  const [secret, setSecret] = useState<string | null>(null);
  return (
    <>
      <Head title={t.pages.subscription} under={<Id id={id} />}>
        <RangePicker />
        <Reload call={load.reload} />
      </Head>
      {secret !== null ? <SecretShown secrets={[secret]} close={() => setSecret(null)} /> : null}
      <Panel title={t.subscription.now} load={load}>
        {(row) => (
          <>
            <Standing row={row} />
            <Actions row={row} done={load.reload} secret={setSecret} />
          </>
        )}
      </Panel>
      <Charts id={id} />
      <Panel title={t.subscription.settings} load={load} actions={load.value?.managed === "api" && may("write") ? <A page="edit" query={{ id }} class="button small">{t.actions.edit}</A> : null}>
        {(row) => <SettingsView row={row} />}
      </Panel>
      <Recent id={id} />
      <Done id={id} />
    </>
  );
}

function Standing(props: { row: SubscriptionDetail }) {
  const { row } = props;
  const { health } = row;
  return (
    <>
      {row.status !== "active" ? (
        <Note tone={row.status === "disabled" ? "bad" : "warn"} title={`${word(t.statuses, row.status)}.`}>
          {word(t.statusWhy, row.status)} {row.reason ? word(t.disabledReasons, row.reason) : ""} {row.reason_text ? `“${row.reason_text}”` : ""}
        </Note>
      ) : health.failing_since ? (
        <Note tone="bad" title={t.subscription.failing}>
          {t.subscription.failingSince} <Time at={health.failing_since} />. {health.last_failure ?? ""} <A page="deliveries" query={{ subscription: row.id, state: "failed" }}>{t.subscription.showFailed}</A> · <A page="issues" query={{ subscription: row.id }}>{t.pages.issues}</A>
        </Note>
      ) : null}
      <Facts>
        <Fact name={t.columns.status}>
          <StatusBadge status={row.status} />
        </Fact>
        <Fact name={t.subscription.successRate}>{health.success_rate === null ? "–" : percentText(health.success_rate, language)}</Fact>
        <Fact name={t.subscription.latency}>
          <Duration ms={health.latency_mean === null ? null : health.latency_mean * 1000} /> / <Duration ms={health.latency_p95 === null ? null : health.latency_p95 * 1000} />
        </Fact>
        <Fact name={t.subscription.breaker}>{health.breaker ? word(t.breakers, health.breaker) : "–"}</Fact>
        <Fact name={t.subscription.queued}>
          {countText(health.queued, language)} / {countText(health.in_flight, language)}
        </Fact>
        <Fact name={t.columns.replica}>
          <span class="break">{health.replica}</span>
        </Fact>
        <Fact name={t.columns.url} wide>
          <span class="id">
            <span class="break">{row.url}</span>
            <Copy text={row.url} />
          </span>
        </Fact>
        {health.last_failure ? (
          <Fact name={t.subscription.lastFailure} wide>
            <span class="break">{health.last_failure}</span> · <Time at={health.last_failure_at} />
          </Fact>
        ) : null}
      </Facts>
    </>
  );
}

type Open = "" | "pause" | "resume" | "enable" | "disable" | "rotate" | "ping" | "test" | "validate" | "purge" | "delete";

function Actions(props: { row: SubscriptionDetail; done: () => void; secret: (secret: string) => void }) {
  const { row, done } = props;
  const [open, setOpen] = useState<Open>("");
  const [reason, setReason] = useState("");
  const [overlap, setOverlap] = useState("24h");
  const [catchUp, setCatchUp] = useState(false);
  const [ping, setPing] = useState<Ping | null>(null);
  const [says, setSays] = useState<string | null>(null);
  const close = () => setOpen("");
  // What stands in the file has a version of its own there.
  const match: Record<string, string> = row.managed === "api" ? { "If-Match": `"${row.version}"` } : {};
  const verb = (name: string, body?: unknown) => async () => {
    const { value } = await ask<Subscription & { replay?: string }>("POST", `/v1/subscriptions/{id}/${name}`, { path: { id: row.id }, ...(body === undefined ? {} : { body }), headers: match });
    setSays(t.subscription.done[name as keyof typeof t.subscription.done] ?? null);
    if (value?.replay) go(to("replay", { id: value.replay }));
    else done();
  };
  const write = may("write");
  return (
    <>
      {says ? <Note tone="good" live>{says}</Note> : null}
      <div class="actions">
        {write && row.status === "active" ? <Button onClick={() => setOpen("pause")}>{t.actions.pause}</Button> : null}
        {write && row.status === "paused" ? <Button kind="main" onClick={() => setOpen("resume")}>{t.actions.resume}</Button> : null}
        {write && row.status === "disabled" ? <Button kind="main" onClick={() => setOpen("enable")}>{t.actions.enable}</Button> : null}
        {write && row.status === "pending" ? <Button kind="main" onClick={() => setOpen("validate")}>{t.actions.validate}</Button> : null}
        {write ? <Button onClick={() => setOpen("ping")}>{t.actions.ping}</Button> : null}
        {write ? <Button onClick={() => setOpen("test")}>{t.actions.test}</Button> : null}
        {may("secrets") && row.managed === "api" ? <Button onClick={() => setOpen("rotate")}>{t.actions.rotate}</Button> : null}
        {may("operator") && row.status !== "disabled" ? <Button kind="danger" onClick={() => setOpen("disable")}>{t.actions.disable}</Button> : null}
        {may("operator") ? <Button kind="danger" onClick={() => setOpen("purge")}>{t.actions.purge}</Button> : null}
        {write && row.managed === "api" ? <Button kind="danger" onClick={() => setOpen("delete")}>{t.actions.delete}</Button> : null}
      </div>
      {open === "pause" ? (
        <Confirm title={t.actions.pause} label={t.actions.pause} close={close} act={verb("pause")}>
          <p>{t.subscription.pauseWhat}</p>
        </Confirm>
      ) : null}
      {open === "resume" || open === "enable" ? (
        <Confirm title={t.actions[open]} label={t.actions[open]} close={close} act={verb(open, catchUp ? { catch_up: true } : undefined)}>
          <p>{open === "resume" ? t.subscription.resumeWhat : t.subscription.enableWhat}</p>
          {may("resend") ? <Check label={t.subscription.catchUp} help={t.subscription.catchUpHelp} checked={catchUp} set={setCatchUp} /> : null}
        </Confirm>
      ) : null}
      {open === "validate" ? (
        <Confirm title={t.actions.validate} label={t.actions.validate} close={close} act={verb("validate")}>
          <p>{t.subscription.validateWhat}</p>
        </Confirm>
      ) : null}
      {open === "disable" ? (
        <Confirm title={t.actions.disable} label={t.actions.disable} danger close={close} act={verb("disable", { reason })}>
          <p>{t.subscription.disableWhat}</p>
          <Input label={t.subscription.disableReason} value={reason} set={setReason} required maxLength={500} />
        </Confirm>
      ) : null}
      {open === "purge" ? (
        <Confirm
          title={t.actions.purge}
          label={t.actions.purge}
          danger
          close={close}
          act={async () => {
            await ask("POST", "/v1/subscriptions/{id}/purge", { path: { id: row.id } });
            setSays(t.subscription.done.purge);
            done();
          }}
        >
          <p>{t.subscription.purgeWhat(row.id, row.tenant ?? "–")}</p>
        </Confirm>
      ) : null}
      {open === "delete" ? (
        <Confirm
          title={t.actions.delete}
          label={t.actions.delete}
          danger
          close={close}
          act={async () => {
            await ask("DELETE", "/v1/subscriptions/{id}", { path: { id: row.id }, headers: match });
            go(to("subscriptions"));
          }}
        >
          <p>{t.subscription.deleteWhat(row.id)}</p>
        </Confirm>
      ) : null}
      {open === "rotate" ? (
        <Confirm
          title={t.actions.rotate}
          label={t.actions.rotate}
          close={close}
          act={async () => {
            const { value } = await ask<{ secret: string }>("POST", "/v1/subscriptions/{id}/secret/rotate", { path: { id: row.id }, body: { overlap }, headers: match });
            props.secret(value.secret);
            done();
          }}
        >
          <p>{t.subscription.rotateWhat}</p>
          <Input label={t.subscription.overlap} value={overlap} set={setOverlap} help={t.subscription.overlapHelp} wrong={Number.isNaN(readDuration(overlap)) ? t.noDuration : undefined} />
        </Confirm>
      ) : null}
      {open === "ping" ? (
        <Confirm
          title={t.actions.ping}
          label={t.actions.ping}
          close={close}
          act={async () => {
            setPing((await ask<Ping>("POST", "/v1/subscriptions/{id}/ping", { path: { id: row.id }, timeout: 90_000 })).value);
          }}
        >
          <p>{t.subscription.pingWhat(row.url)}</p>
        </Confirm>
      ) : null}
      {open === "test" ? <TestDialog row={row} close={close} answered={setPing} /> : null}
      {ping ? <PingView ping={ping} close={() => setPing(null)} /> : null}
    </>
  );
}

function TestDialog(props: { row: Subscription; close: () => void; answered: (ping: Ping) => void }) {
  const types = useLoad("event types", (signal) => get("/v1/event-types", { signal }));
  const [type, setType] = useState("");
  const [data, setData] = useState("");
  const names = types.value?.event_types ?? [];
  const chosen = names.find((each) => each.name === type);
  return (
    <Confirm
      title={t.actions.test}
      label={t.actions.send}
      close={props.close}
      act={async () => {
        // The payload is sent as it is written: numbers of any size and spelling stay what they are.
        const text = `{"event_type":${JSON.stringify(type)}${data.trim() === "" ? "" : `,"data":${data}`}}`;
        props.answered((await ask<Ping>("POST", "/v1/subscriptions/{id}/test", { path: { id: props.row.id }, text, timeout: 90_000 })).value);
      }}
    >
      <p>{t.subscription.testWhat}</p>
      {types.problem ? <ProblemNote problem={types.problem} /> : null}
      {types.value && names.length === 0 ? (
        <Note tone="warn">
          {t.subscription.noCatalogue} {isOperator() ? <A page="event-types">{t.pages["event-types"]}</A> : null}
        </Note>
      ) : null}
      <Input label={t.columns.eventType} value={type} set={setType} list="test-types" required />
      <datalist id="test-types">
        {names.map((each) => (
          <option key={each.name} value={each.name} />
        ))}
      </datalist>
      <Area label={t.subscription.testData} value={data} set={setData} help={t.subscription.testDataHelp} />
      {chosen?.example !== undefined && chosen.example !== null ? (
        <Button kind="small" onClick={() => setData(JSON.stringify(chosen.example, null, 2))}>
          {t.subscription.useExample}
        </Button>
      ) : null}
    </Confirm>
  );
}

function PingView(props: { ping: Ping; close: () => void }) {
  const { ping } = props;
  return (
    <Dialog title={t.subscription.pingAnswer} close={props.close}>
      <Note tone={ping.delivered ? "good" : "bad"} live title={ping.delivered ? t.subscription.pingGood : t.subscription.pingBad}>
        {ping.status !== null ? `HTTP ${ping.status}` : null} {ping.reason ? failureText(ping.reason, t) : null} {ping.detail} {span(ping.duration * 1000)}
      </Note>
      <Facts>
        <Fact name={t.columns.event}>
          <code>{ping.event_id}</code>
        </Fact>
      </Facts>
      {ping.body ? <Text text={ping.body} label={t.delivery.response} /> : null}
      <div class="actions end">
        <Button kind="main" onClick={props.close}>
          {t.close}
        </Button>
      </div>
    </Dialog>
  );
}

/** A secret in full, for the only time. */
export function SecretShown(props: { secrets: string[]; close: () => void }) {
  const note = useRef<HTMLDivElement>(null);
  useEffect(() => note.current?.querySelector("button")?.focus(), []);
  return (
    <div ref={note}>
      <Note tone="warn" title={t.subscription.secretOnce} live actions={<Button kind="small" onClick={props.close}>{t.subscription.secretKept}</Button>}>
        {props.secrets.map((each) => (
          <span class="id block" key={each}>
            <code class="break">{each}</code>
            <Copy text={each} label={t.copy} />
          </span>
        ))}
      </Note>
    </div>
  );
}

function Charts(props: { id: string }) {
  const { query } = place.use();
  const asked = { subscription: props.id, ...rangeQuery(rangeOf(query, Date.now())) };
  const load = useLoad(`subscription's figures ${props.id} ${query.get("since") ?? ""} ${query.get("until") ?? ""}`, (signal) =>
    get("/v1/statistics", { query: asked, signal }),
  );
  return (
    <Panel title={t.chart.overTime} load={load} lines={8}>
      {(answer) => (
        <>
          <Knowledge as_of={answer.as_of} gaps={answer.gaps} at={load.at} />
          <Totals answer={answer} query={asked} />
          <div class="charts">
            <ClassChart answer={answer} />
            <LatencyChart answer={answer} />
            <LatenessChart answer={answer} />
          </div>
        </>
      )}
    </Panel>
  );
}

/** Quantiles of the attempts' durations. */
export function LatencyChart(props: { answer: Statistics }) {
  const times = stepTimes(props.answer);
  const all = props.answer.series[0];
  return (
    <Chart
      title={t.chart.latency}
      times={times}
      text={(value) => span(value)}
      axis={(value) => span(value)}
      lines={[
        { name: "p50", colour: "info", values: values(all, times, (each) => each.p50_ms, null) },
        { name: "p95", colour: "accent", values: values(all, times, (each) => each.p95_ms, null) },
        { name: "p99", colour: "violet", values: values(all, times, (each) => each.p99_ms, null) },
      ]}
    />
  );
}

/** From an event's own time to its acknowledgement, on average: retries and waits are in it. */
export function LatenessChart(props: { answer: Statistics }) {
  const times = stepTimes(props.answer);
  if (props.answer.totals.late_ms === null) return null; // nothing was acknowledged
  return (
    <Chart
      title={t.chart.lateness}
      times={times}
      text={(value) => span(value)}
      axis={(value) => span(value)}
      lines={[{ name: t.chart.mean, colour: "warn", values: values(props.answer.series[0], times, (each) => each.late_ms, null) }]}
    />
  );
}

/** The sums of a time. A number of deliveries leads to exactly these; one of attempts can't, and says what it counts. */
export function Totals(props: { answer: Statistics; query: Record<string, string | null> }) {
  const { totals } = props.answer;
  const seconds = secondsOf(props.answer, Date.now());
  return (
    <div class="numbers">
      <Figure name={t.numbers.attempts} value={countText(totals.attempts, language)} under={t.numbers.perSecond(rateText(totals.attempts / seconds, language))} />
      <Figure name={t.numbers.success} value={totals.attempts === 0 ? "–" : percentText(totals.delivered / totals.attempts, language)} tone={totals.attempts > 0 && totals.delivered / totals.attempts < 0.95 ? "bad" : undefined} under={t.numbers.ofAttempts} />
      <Figure name={t.numbers.failed} value={countText(totals.failed, language)} href={to("deliveries", { ...props.query, state: "failed" })} under={t.numbers.failedAttempts} />
      <Figure name={t.numbers.dead} value={countText(totals.dead, language)} tone={totals.dead > 0 ? "bad" : undefined} href={to("deliveries", { ...props.query, state: "dead" })} under={t.numbers.given} />
      <Figure name="p50 / p99" value={totals.p50_ms === null ? "–" : `${span(totals.p50_ms)} / ${totals.p99_ms === null ? "–" : span(totals.p99_ms)}`} under={t.numbers.perAttempt} />
    </div>
  );
}

export function Figure(props: { name: string; value: string; under?: string; href?: string; tone?: "bad" | "good" | "warn" | undefined }) {
  return (
    <div class={`number ${props.tone ?? ""}`}>
      <p class="name">{props.name}</p>
      <p class="value">{props.href ? <a href={props.href}>{props.value}</a> : props.value}</p>
      {props.under ? <p class="faint small">{props.under}</p> : null}
    </div>
  );
}

function SettingsView(props: { row: SubscriptionDetail }) {
  const { row } = props;
  return (
    <>
      {row.managed === "file" ? <Note tone="info">{t.subscription.fileManaged}</Note> : null}
      <Facts>
        <Fact name={t.columns.eventTypes} wide>
          {row.event_types.map((each) => (
            <code key={each} class="chip">
              {each}
            </code>
          ))}
        </Fact>
        {isOperator() ? <Fact name={t.columns.tenant}>{row.tenant ?? "–"}</Fact> : null}
        <Fact name={t.edit.payload}>{word(t.edit.payloads, row.payload)}</Fact>
        <Fact name={t.edit.signatures}>{row.signatures.join(", ")}</Fact>
        <Fact name={t.edit.redirects}>{word(t.edit.redirect, row.redirects)}</Fact>
        <Fact name={t.edit.timeout}>{row.timeout ?? t.edit.default}</Fact>
        <Fact name={t.edit.maxInFlight}>{row.max_in_flight}</Fact>
        <Fact name={t.edit.rateLimit}>{row.rate_limit ?? t.edit.none}</Fact>
        <Fact name={t.edit.validate}>{row.validate ? t.yes : t.no}</Fact>
        <Fact name={t.columns.created}>
          <Time at={row.created_at} />
        </Fact>
        <Fact name={t.columns.updated}>
          <Time at={row.updated_at} />
        </Fact>
        <Fact name={t.columns.version}>{row.version}</Fact>
        <Fact name={t.edit.headers} wide>
          {Object.keys(row.headers).length === 0 ? (
            "–"
          ) : (
            <span class="code block">
              {Object.entries(row.headers).map(([name, value]) => (
                <span class="block" key={name}>
                  {name}: {value}
                </span>
              ))}
            </span>
          )}
        </Fact>
      </Facts>
      <h3>{t.edit.retry}</h3>
      {row.retry?.schedule ? <Schedule waits={row.retry.schedule} /> : <p class="faint">{t.edit.defaultSchedule}</p>}
      <h3>{t.subscription.secrets}</h3>
      <Table
        caption={t.subscription.secrets}
        rows={row.secrets}
        id={(each) => each.masked}
        columns={[
          { name: t.subscription.secret, cell: (each) => <code class="break">{each.masked}</code> },
          { name: t.subscription.expires, cell: (each) => (each.expires_at ? <Time at={each.expires_at} /> : <Badge tone="good">{t.subscription.signs}</Badge>) },
          { name: t.subscription.publicKey, cell: (each) => (each.public_key ? <span class="id"><code class="break">{each.public_key}</code><Copy text={each.public_key} /></span> : "–"), wide: true },
        ]}
      />
    </>
  );
}

function Recent(props: { id: string }) {
  const load = useLoad(`recent ${props.id}`, (signal) => get("/v1/deliveries", { query: { subscription: props.id, limit: 10 }, signal }));
  return (
    <Panel title={t.subscription.recent} load={load} actions={<A page="deliveries" query={{ subscription: props.id }} class="button small">{t.all}</A>}>
      {(page) => (page.deliveries.length === 0 ? <p class="faint">{t.list.none}</p> : <DeliveryTable caption={t.subscription.recent} rows={page.deliveries} columns={columnsOf({ subscription: false })} here />)}
    </Panel>
  );
}
