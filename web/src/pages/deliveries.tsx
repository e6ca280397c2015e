// The list of deliveries.

import { useState } from "preact/hooks";
import { ask, get } from "../api/client";
import type { Delivery, DeliveryPage, DeliveryState, Intervention, Series, Statistics } from "../api/types";
import { countText, percentText } from "../format/numbers";
import { utcText } from "../format/time";
import { FAILURE_CLASSES, stepTimes, values } from "../state/figures";
import { AT_ONCE, DELIVERY_FILTERS, filtersOf, listQuery, pageSize, rangeOf, rangeQuery, wanted } from "../state/filters";
import { streamComplete, streamState, useNews, useStream, type StreamRow } from "../state/live";
import { useLoad, type Loading } from "../state/load";
import { APP, changed, go, place, to } from "../state/place";
import { isOperator, may } from "../state/session";
import { heading, language, t } from "../text/text";
import { causeText, failureText } from "../state/verdict";
import { Button, Copy, Duration, Empty, Note, Reload, StateBadge, Time, Words } from "../ui/bits";
import { Chart } from "../ui/chart";
import { columnsOf, DeliveryTable } from "../ui/deliveries";
import { asProblem, Confirm } from "../ui/dialog";
import { Export } from "../ui/export";
import { Filters, Pager, stateOptions, type FilterField } from "../ui/filters";
import { Select } from "../ui/form";
import { Knowledge, Panel, ProblemNote, problemTexts, Section } from "../ui/panel";
import { RangePicker } from "../ui/range";
import { receivedColumns, receivedFields } from "../ui/received";
import { Head, pageTitle } from "../ui/shell";
import { Table } from "../ui/table";
import { Tail, TailSwitch } from "../ui/tail";

function deliveryFields(): FilterField[] {
  if (APP === "inspect") return receivedFields();
  const fields: FilterField[] = [
    { name: "state", label: t.columns.state, options: stateOptions() },
    { name: "status", label: t.columns.status, help: t.filters.statusHelp },
    { name: "reason", label: t.columns.reason, help: t.filters.reasonHelp },
    { name: "event_type", label: t.columns.eventType, help: t.filters.typeHelp },
    { name: "subscription", label: t.columns.subscription },
    { name: "event", label: t.columns.event },
    { name: "host", label: t.columns.host },
    { name: "cause", label: t.issues.cause, help: t.filters.causeHelp },
  ];
  if (isOperator()) fields.push({ name: "tenant", label: t.columns.tenant });
  return fields;
}

export function Deliveries() {
  const { query } = place.use();
  const key = withoutView(query).toString();
  const tail = APP !== "inspect" && query.has("tail");
  const load = useLoad(tail ? null : `deliveries ${key}`, (signal) => loadRows(query, signal));
  const filters = filtersOf(query, DELIVERY_FILTERS);
  return (
    <>
      <Head title={pageTitle("deliveries")}>
        {APP === "inspect" ? null : <TailSwitch on={tail} href={changed(tail ? { tail: null } : { tail: 1, cursor: null, until: null })} />}
        {tail ? null : <RangePicker />}
        {tail ? null : <Reload call={load.reload} />}
        {APP === "inspect" ? null : <Export path="/v1/deliveries" name="deliveries" query={() => listQuery(query, DELIVERY_FILTERS, Date.now())} />}
        <Copy label={t.copyLink} text={() => new URL(changed({ since: utcText(rangeOf(query, Date.now()).since), until: utcText(rangeOf(query, Date.now()).until ?? Date.now()) }), document.baseURI).href} />
      </Head>
      <Filters fields={deliveryFields()} />
      {tail ? <DeliveriesTail key={JSON.stringify(filters)} filters={filters} /> : <List load={load} query={query} filters={filters} />}
    </>
  );
}

function List(props: { load: Loading<DeliveryPage>; query: URLSearchParams; filters: Record<string, string> }) {
  const { load, query, filters } = props;
  const key = withoutView(query).toString();
  const live = !query.has("until") && !query.has("cursor");
  const news = useNews((row) => wanted(filters, row), `${key} ${load.at}`);
  const [picked, setPicked] = useState<ReadonlySet<string>>(new Set());
  const rows = load.value?.deliveries ?? [];
  const chosen = rows.filter((row) => picked.has(row.id));
  const pick = (row: Delivery) => (
    <input
      type="checkbox"
      aria-label={t.bulk.select(row.id)}
      checked={picked.has(row.id)}
      onChange={(event) => {
        const next = new Set(picked);
        if (event.currentTarget.checked) next.add(row.id);
        else next.delete(row.id);
        setPicked(next);
      }}
    />
  );
  return (
    <>
      {APP === "inspect" ? null : <DeliveriesOverTime />}
      {live && news.count > 0 ? (
        <Note tone="info" live actions={<Button kind="small" onClick={load.reload}>{t.show}</Button>}>
          {news.atLeast ? t.news.atLeast(countText(news.count, language)) : t.news.exactly(news.count)}
        </Note>
      ) : null}
      <Panel
        title={t.list.title}
        load={load}
        lines={10}
        actions={may("resend") && chosen.length > 0 ? <Bulk rows={chosen} done={() => setPicked(new Set())} /> : may("resend") ? <ReplayThese /> : null}
      >
        {(page) => (
          <>
            <Knowledge as_of={page.as_of} gaps={page.gaps} at={load.at} />
            {page.deliveries.length === 0 ? (
              page.next_cursor === null ? (
                <Empty title={t.list.none}>
                  <p>{Object.keys(filters).length > 0 ? t.list.lessFilters : t.list.otherTime}</p>
                </Empty>
              ) : (
                <Empty title={t.list.notYet} />
              )
            ) : (
              <DeliveryTable
                caption={t.pages.deliveries}
                rows={page.deliveries}
                columns={APP === "inspect" ? receivedColumns() : columnsOf()}
                {...(may("resend")
                  ? {
                      pick,
                      pickAll: (
                        <input
                          type="checkbox"
                          aria-label={t.bulk.selectAll}
                          checked={rows.length > 0 && rows.every((row) => picked.has(row.id))}
                          onChange={(event) => setPicked(new Set(event.currentTarget.checked ? rows.map((row) => row.id) : []))}
                        />
                      ),
                    }
                  : {})}
              />
            )}
            <Pager next={page.next_cursor} shown={page.deliveries.length} sizes />
          </>
        )}
      </Panel>
    </>
  );
}

/** As many rows as the address asks for; the API gives fewer at once. */
async function loadRows(query: URLSearchParams, signal: AbortSignal) {
  const asked = listQuery(query, DELIVERY_FILTERS, Date.now());
  let page = await get("/v1/deliveries", { query: asked, signal });
  for (let more = page; more.next_cursor !== null && more.deliveries.length > 0 && page.deliveries.length < pageSize(query); ) {
    more = await get("/v1/deliveries", { query: { ...asked, cursor: more.next_cursor, limit: Math.min(AT_ONCE, pageSize(query) - page.deliveries.length) }, signal });
    page = { ...page, deliveries: [...page.deliveries, ...more.deliveries], next_cursor: more.next_cursor };
  }
  return page;
}

/** What of the address says which rows there are, and not how they are counted. */
function withoutView(query: URLSearchParams): URLSearchParams {
  const rows = new URLSearchParams(query);
  for (const name of ["by", "order"]) rows.delete(name);
  return rows;
}

/** Attempts as they end, each a line. */
function DeliveriesTail(props: { filters: Record<string, string> }) {
  const stream = streamState.use();
  const complete = streamComplete.use();
  return (
    <Section title={t.tail.title}>
      {stream === "off" ? <Note tone="warn">{t.tail.off}</Note> : null}
      {complete ? null : <Note tone="warn">{t.tail.part}</Note>}
      <Tail<StreamRow>
        caption={t.tail.title}
        href={(row) => to("delivery", { id: row.id })}
        name={(row) => `${row.event_type}, ${t.states[row.state as DeliveryState] ?? row.state}, ${row.id}`}
        source={(take) =>
          useStream((event) => {
            if (event.event !== "deliveries") return;
            const { deliveries, more } = JSON.parse(event.data) as { deliveries: StreamRow[]; more: number };
            take(deliveries.filter((row) => wanted(props.filters, row)).reverse(), more);
          })
        }
        columns={[
          { name: t.columns.time, cell: (row) => <Time at={row.at} /> },
          { name: t.columns.state, cell: (row) => <StateBadge state={row.state as DeliveryState} /> },
          { name: t.columns.eventType, cell: (row) => <Words of={row.event_type} /> },
          { name: t.columns.subscription, cell: (row) => <Words of={row.subscription} /> },
          { name: t.columns.tenant, cell: (row) => row.tenant ?? <span class="faint">–</span>, hidden: !isOperator() },
          { name: t.columns.host, cell: (row) => (row.host ? <Words of={row.host} /> : "–"), spare: true },
          { name: t.columns.answer, cell: (row) => <span title={row.failure ? failureText(row.failure, t) : undefined}><Words of={String(row.status ?? row.failure ?? row.reason ?? "–")} /></span> },
          { name: t.delivery.number, cell: (row) => row.attempt, right: true },
          { name: t.columns.duration, cell: (row) => <Duration ms={row.duration_ms} />, right: true },
        ]}
      />
    </Section>
  );
}

/** "All that are like these" is a replay: its filter and its time are frozen at the click. */
function ReplayThese() {
  const { query } = place.get();
  const filters = filtersOf(query, DELIVERY_FILTERS);
  const state = filters["state"];
  if (filters["event"] || filters["host"] || filters["cause"] || !state || !["failed", "dead", "dropped", "delivered"].includes(state)) return null;
  const range = rangeOf(query, Date.now());
  return (
    <a
      class="button small"
      href={to("replays", {
        new: "deliveries",
        subscription: filters["subscription"],
        tenant: filters["tenant"],
        event_types: filters["event_type"],
        states: state === "failed" ? "dead,dropped" : state,
        status_codes: filters["status"],
        reasons: filters["reason"],
        since: utcText(range.since),
        until: utcText(range.until ?? Date.now()),
      })}
    >
      {t.bulk.replayAll}
    </a>
  );
}

const WORKERS = 4;

function Bulk(props: { rows: Delivery[]; done: () => void }) {
  const [open, setOpen] = useState<"" | "retry" | "cancel">("");
  const [progress, setProgress] = useState({ done: 0, failed: [] as string[] });
  const cancellable = props.rows.filter((row) => row.state === "pending" || row.state === "retrying");
  const rows = open === "cancel" ? cancellable : props.rows;
  const tenants = [...new Set(rows.map((row) => row.tenant ?? "–"))];
  const act = async () => {
    const waiting = [...rows];
    const failed: string[] = [];
    let done = 0;
    const work = async () => {
      for (let row = waiting.shift(); row; row = waiting.shift()) {
        try {
          await ask<Intervention>("POST", `/v1/deliveries/{id}/${open}`, { path: { id: row.id } });
          done += 1;
        } catch (error) {
          failed.push(`${row.id}: ${problemTexts(asProblem(error)).detail}`);
        }
        setProgress({ done, failed: [...failed] });
      }
    };
    await Promise.all(Array.from({ length: WORKERS }, work));
    if (failed.length > 0) throw new Error(`${t.bulk.failed(failed.length)} ${failed.slice(0, 5).join("; ")}`);
    props.done();
  };
  return (
    <>
      <Button kind="small" onClick={() => setOpen("retry")}>
        {t.bulk.retry(props.rows.length)}
      </Button>
      {cancellable.length > 0 ? (
        <Button kind="small" onClick={() => setOpen("cancel")}>
          {t.bulk.cancel(cancellable.length)}
        </Button>
      ) : null}
      {open !== "" ? (
        <Confirm title={open === "retry" ? t.bulk.retry(rows.length) : t.bulk.cancel(rows.length)} label={open === "retry" ? t.actions.retry : t.actions.cancelDelivery} danger={open === "cancel"} close={() => setOpen("")} act={act}>
          <p>{open === "retry" ? t.bulk.retryWhat(rows.length) : t.bulk.cancelWhat(rows.length)}</p>
          {isOperator() ? <p>{t.bulk.tenants(tenants.slice(0, 5).join(", ") + (tenants.length > 5 ? "…" : ""))}</p> : null}
          {progress.done > 0 ? <p role="status">{t.bulk.progress(progress.done, rows.length)}</p> : null}
        </Confirm>
      ) : null}
    </>
  );
}

/** What the list's filters and time come to: over time, and by what came of it. The counts know no single event, no reason and no cause. */
function DeliveriesOverTime() {
  const { query } = place.use();
  const filters = filtersOf(query, DELIVERY_FILTERS);
  const open = query.has("by");
  const asked = {
    ...rangeQuery(rangeOf(query, Date.now())),
    subscription: filters["subscription"],
    tenant: filters["tenant"],
    event_type: filters["event_type"],
    host: filters["host"],
    status: filters["status"],
  };
  const fits = !filters["event"] && !filters["reason"] && !filters["cause"];
  const load = useLoad(open && fits ? `deliveries over time ${JSON.stringify(asked)}` : null, (signal) => get("/v1/statistics", { query: asked, signal }));
  if (!fits) return null;
  return (
    <details class="fold" open={open} onToggle={(event) => event.currentTarget.open !== open && go(changed({ by: open ? null : "status", order: null }), { replace: true })}>
      <summary>{t.chart.overTime}</summary>
      {open ? (
        <Panel title={t.chart.attempts} load={load}>
          {(answer) => (
            <>
              <Knowledge as_of={answer.as_of} gaps={answer.gaps} at={load.at} />
              <ClassChart answer={answer} />
              <Breakdown answer={answer} />
              <Groups asked={asked} />
              {asked.event_type || asked.host || asked.status ? null : <Causes since={asked.since} until={asked.until} subscription={asked.subscription} tenant={asked.tenant} />}
            </>
          )}
        </Panel>
      ) : null}
    </details>
  );
}

/** Attempts by class, stacked. */
export function ClassChart(props: { answer: Statistics }) {
  const times = stepTimes(props.answer);
  const all = props.answer.series[0];
  const text = (value: number) => countText(Math.round(value), language);
  return (
    <Chart
      title={t.chart.attempts}
      times={times}
      stacked
      text={text}
      lines={[
        { name: t.states.delivered, colour: "good", values: values(all, times, (each) => each.delivered) },
        { name: "4xx", colour: "warn", values: values(all, times, (each) => each.failures["4xx"]) },
        { name: "5xx", colour: "bad", values: values(all, times, (each) => each.failures["5xx"]) },
        { name: t.chart.noAnswer, colour: "violet", values: values(all, times, (each) => (["timeout", "connect", "dns", "tls"] as const).reduce((sum, name) => sum + each.failures[name], 0)) },
        { name: t.chart.other, colour: "calm", values: values(all, times, (each) => each.failures["3xx"] + each.failures["other"]) },
      ]}
    />
  );
}

const ORDERS = ["busiest", "failed", "slowest"] as const;
const GROUPS = ["status", "event_type", "subscription", "host", "tenant"] as const;

/** The same by what it was, the busiest first. Each row is a filter of the list. */
function Groups(props: { asked: Record<string, string | null | undefined> }) {
  const { query } = place.use();
  const group = GROUPS.find((each) => each === query.get("by")) ?? "status";
  const order = ORDERS.find((each) => each === query.get("order")) ?? "busiest";
  const load = useLoad(`groups ${group} ${JSON.stringify(props.asked)}`, (signal) => get("/v1/statistics", { query: { ...props.asked, group, step: "day", limit: 200 }, signal }));
  const names: Record<(typeof GROUPS)[number], string> = { status: t.columns.answer, event_type: t.columns.eventType, subscription: t.columns.subscription, host: t.columns.host, tenant: t.columns.tenant };
  return (
    <>
      <div class="inline">
        <Select label={t.chart.by} value={group} set={(value) => go(changed({ by: value }), { replace: true })} options={GROUPS.filter((each) => each !== "tenant" || isOperator()).map((each) => [each, names[each]])} />
        <Select label={t.chart.order} value={order} set={(value) => go(changed({ order: value }), { replace: true })} options={ORDERS.map((each) => [each, t.chart.orders[each]])} />
      </div>
      {load.problem ? <ProblemNote problem={load.problem} again={load.reload} /> : null}
      {load.value ? (
        <Table
          caption={t.chart.by}
          rows={ordered(load.value.series, order)}
          id={(row) => String(row.group[group])}
          href={(row) => filterOf(group, row.group[group] ?? null)}
          columns={[
            { name: names[group], cell: (row) => <span class="break">{row.group[group] ?? t.chart.noRequest}</span> },
            { name: t.columns.attempts, cell: (row) => countText(row.totals.attempts, language), right: true },
            { name: t.numbers.failed, cell: (row) => countText(row.totals.failed, language), right: true },
            { name: t.numbers.dead, cell: (row) => countText(row.totals.dead, language), right: true },
            { name: "p99", cell: (row) => <Duration ms={row.totals.p99_ms} />, right: true },
          ]}
        />
      ) : null}
      {load.value?.cut ? <p class="faint small">{t.chart.cut}</p> : null}
    </>
  );
}

/** Series come by how busy they are. */
function ordered(series: Series[], order: (typeof ORDERS)[number]): Series[] {
  if (order === "busiest") return series;
  const value = (each: Series) => (order === "failed" ? each.totals.failed : (each.totals.p99_ms ?? -1));
  return [...series].sort((one, other) => value(other) - value(one));
}

interface CauseSum {
  cause: string;
  pending: number;
  retrying: number;
  dead: number;
  subscriptions: number;
}

/** What isn't delivered yet, by why: what waits, what is tried again, and what was given up. Each number is a filter of the list. */
function Causes(props: Record<"since" | "until" | "subscription" | "tenant", string | null | undefined>) {
  const load = useLoad(`causes ${JSON.stringify(props)}`, (signal) => get("/v1/issues", { query: { ...props, limit: 200 }, signal }));
  if (load.problem) return <ProblemNote problem={load.problem} again={load.reload} />;
  const sums = new Map<string, CauseSum>();
  for (const issue of load.value?.issues ?? []) {
    const sum = sums.get(issue.cause) ?? { cause: issue.cause, pending: 0, retrying: 0, dead: 0, subscriptions: 0 };
    sums.set(issue.cause, { ...sum, pending: sum.pending + issue.pending, retrying: sum.retrying + issue.retrying, dead: sum.dead + issue.dead, subscriptions: sum.subscriptions + 1 });
  }
  if (!load.value || sums.size === 0) return null;
  // Of one subscription they are exact. Of all, those of deleted ones are in the list and not here.
  const exact = Boolean(props.subscription) && !load.value.at_least && !load.value.cut;
  const count = (sum: CauseSum, state: "pending" | "retrying" | "dead") =>
    sum[state] === 0 ? (
      <span class="faint">0</span>
    ) : (
      <a class="above" href={changed({ cause: sum.cause, state, cursor: null })}>
        {exact ? countText(sum[state], language) : t.atLeast(countText(sum[state], language))}
      </a>
    );
  const rows = [...sums.values()].sort((one, other) => other.pending + other.retrying + other.dead - one.pending - one.retrying - one.dead);
  return (
    <>
      <h3>{t.chart.causes}</h3>
      <Table
        caption={t.chart.causes}
        rows={rows}
        id={(sum) => sum.cause}
        href={(sum) => changed({ cause: sum.cause, state: null, cursor: null })}
        columns={[
          { name: t.issues.cause, cell: (sum) => <code><Words of={sum.cause} /></code> },
          { name: t.verdict.whyTitle, cell: (sum) => <span class="break">{causeText(sum.cause, t).why}</span>, wide: true },
          { name: t.pages.subscriptions, cell: (sum) => countText(sum.subscriptions, language), right: true },
          { name: heading(t.states.pending), cell: (sum) => count(sum, "pending"), right: true },
          { name: heading(t.states.retrying), cell: (sum) => count(sum, "retrying"), right: true },
          { name: heading(t.states.dead), cell: (sum) => count(sum, "dead"), right: true },
        ]}
      />
    </>
  );
}

function filterOf(group: (typeof GROUPS)[number], value: string | number | null): string | null {
  if (value === null) return null;
  // A word stands for an attempt without an answer: the list has it as a reason.
  if (group === "status" && typeof value === "string" && !/^\d+$/.test(value)) return changed({ reason: value, cursor: null });
  return changed({ [group]: value, cursor: null });
}

const STATUS_FILTERS = new Set<string>(["3xx", "4xx", "5xx"]);

function Breakdown(props: { answer: Statistics }) {
  const { totals } = props.answer;
  if (totals.failed === 0) return null;
  return (
    <ul class="breakdown" aria-label={t.chart.byClass}>
      {FAILURE_CLASSES.filter((name) => totals.failures[name] > 0).map((name) => (
        <li key={name}>
          {STATUS_FILTERS.has(name) ? <a href={changed({ status: name, cursor: null })}>{name}</a> : name} {countText(totals.failures[name], language)}{" "}
          <span class="faint">{percentText(totals.failures[name] / totals.attempts, language)}</span>
        </li>
      ))}
    </ul>
  );
}

