// How the installation does, on one page; on a fresh one, how to publish the first event.

import { useEffect, useState } from "preact/hooks";
import { get } from "../api/client";
import type { Statistics } from "../api/types";
import { countText, rateText } from "../format/numbers";
import { rangeOf, rangeQuery } from "../state/filters";
import { secondsOf } from "../state/figures";
import { useStream } from "../state/live";
import { useLoad } from "../state/load";
import { causesOf, sampled, sampleOf, samples } from "../state/samples";
import { API_ROOT, APP, place } from "../state/place";
import { current, isOperator, may } from "../state/session";
import { language, span, t } from "../text/text";
import { A, Button, Copy, Note, Reload } from "../ui/bits";
import { Chart, type Line } from "../ui/chart";
import { Filters } from "../ui/filters";
import { Knowledge, Panel } from "../ui/panel";
import { RangePicker } from "../ui/range";
import { Head } from "../ui/shell";
import { ClassChart } from "./deliveries";
import { EventTable } from "./events";
import { FailingTable, useFailing } from "./failing";
import { Figure, LatencyChart, LatenessChart, Totals } from "./subscription";

const HOUR = 3_600_000;

export function Overview() {
  const { query } = place.use();
  const range = rangeOf(query, Date.now(), HOUR);
  const tenant = isOperator() ? query.get("tenant") : null;
  const asked = { ...rangeQuery(range), tenant };
  const load = useLoad(may("read") ? `overview ${query.toString()}` : null, (signal) => get("/v1/statistics", { query: asked, signal }));
  const troubles = useFailing(may("read"), tenant);
  const [news, setNews] = useState(0);
  useStream((event) => {
    if (event.event !== "tick" || range.until !== null) return;
    setNews((n) => n + ((JSON.parse(event.data) as { attempts?: number }).attempts ?? 0));
  });
  const reload = () => {
    setNews(0);
    load.reload();
    troubles.reload();
  };
  return (
    <>
      <Head title={t.pages.overview}>
        <RangePicker length={HOUR} />
        <Reload call={reload} />
      </Head>
      {isOperator() ? <Filters fields={[{ name: "tenant", label: t.columns.tenant }]} /> : null}
      {news > 0 ? (
        <Note tone="info" live actions={<Button kind="small" onClick={reload}>{t.show}</Button>}>
          {t.news.attempts(countText(news, language))}
        </Note>
      ) : null}
      <FirstEvent />
      {may("read") ? (
        <>
          <Panel title={t.overview.numbers} load={load} lines={4}>
            {(answer) => (
              <>
                <Knowledge as_of={answer.as_of} gaps={answer.gaps} at={load.at} />
                <Totals answer={answer} query={asked} />
                {tenant ? null : <Now answer={answer} />}
                <div class="charts">
                  <ClassChart answer={answer} />
                  <LatencyChart answer={answer} />
                  <LatenessChart answer={answer} />
                </div>
                <A page="deliveries" query={{ ...asked, by: "subscription", order: "slowest" }}>{t.chart.whoIsSlow}</A>
              </>
            )}
          </Panel>
          <Panel title={t.pages.failing} load={troubles}>
            {(answer) => <FailingTable answer={answer} most={10} />}
          </Panel>
        </>
      ) : null}
    </>
  );
}

/** What the processes say of themselves: lag, what waits, how far the history is. Operators only. */
function Now(props: { answer: Statistics }) {
  const load = useLoad(isOperator() ? "cluster" : null, (signal) => get("/v1/cluster", { signal }), { every: 5000 });
  useEffect(() => {
    if (load.value) samples.set(sampled(samples.get(), sampleOf(load.value.replicas, load.at)));
  }, [load.value, load.at]);
  if (!load.value) return null;
  const replicas = load.value.replicas;
  const { lag, parked } = sampleOf(replicas, load.at);
  const waiting = Object.values(parked).reduce((total, each) => total + each, 0);
  const behind = Math.max(0, ...replicas.flatMap((each) => (each.history?.as_of ? [Date.parse(each.reported_at ?? "") - Date.parse(each.history.as_of)] : [])));
  const unready = replicas.filter((each) => !each.ready);
  const seconds = secondsOf(props.answer, Date.now());
  return (
    <>
      {unready.length > 0 ? (
        <Note tone="bad" title={t.overview.notReady(unready.length)}>
          {unready[0]!.problems[0] ?? unready[0]!.replica} <A page="replicas">{t.pages.replicas}</A>
        </Note>
      ) : null}
      <div class="numbers">
        <Figure name={t.overview.deliveriesPerSecond} value={rateText(props.answer.totals.delivered / seconds, language)} under={t.overview.delivered} />
        <Figure name={t.replicas.lag} value={countText(lag, language)} under={t.overview.lag} />
        <Figure name={t.overview.parked} value={countText(waiting, language)} under={Object.entries(parked).filter(([, count]) => count > 0).map(([name, count]) => `${name} ${countText(count, language)}`).join(", ") || t.overview.nothingParked} href="deliveries?state=pending" />
        <Figure name={t.replicas.history} value={span(behind)} under={t.overview.behind} tone={behind > 60_000 ? "warn" : undefined} />
        <Figure name={t.pages.replicas} value={countText(replicas.length, language)} under={replicas.some((each) => each.warnings.length > 0) ? t.overview.warnings : t.overview.noWarnings} href="replicas" tone={replicas.some((each) => each.warnings.length > 0) ? "warn" : undefined} />
      </div>
      <SinceOpen />
    </>
  );
}

const COLOURS: Line["colour"][] = ["bad", "warn", "info", "violet", "accent", "calm", "good"];

/** Lag, and what waits by why, since the application is open: the processes say how it is now, and nobody keeps it. */
function SinceOpen() {
  const kept = samples.use();
  const [open, setOpen] = useState(false);
  const times = kept.map((each) => each.at);
  const causes = causesOf(kept);
  const text = (value: number) => countText(Math.round(value), language);
  return (
    <details class="fold" open={open} onToggle={(event) => setOpen(event.currentTarget.open)}>
      <summary>{t.chart.sinceOpen}</summary>
      {open ? (
        <div class="charts">
          <Chart title={t.chart.lag} times={times} text={text} fixed lines={[{ name: t.replicas.lag, colour: "info", values: kept.map((each) => each.lag) }]} />
          {causes.length === 0 ? (
            <p class="faint">{t.overview.nothingParked}</p>
          ) : (
            <Chart
              title={t.chart.waits}
              times={times}
              stacked
              fixed
              text={text}
              lines={causes.slice(0, COLOURS.length).map((name, at): Line => ({ name, colour: COLOURS[at]!, values: kept.map((each) => each.parked[name] ?? 0) }))}
            />
          )}
        </div>
      ) : null}
    </details>
  );
}

/** On a fresh installation: how to publish the first event; and it shows it arriving. */
function FirstEvent() {
  const subscriptions = useLoad(may("read") ? "first subscriptions" : null, (signal) => get("/v1/subscriptions", { query: { limit: 1 }, signal }));
  const events = useLoad(may("read") && current().history ? "first events" : null, (signal) => get("/v1/events", { query: { limit: 5 }, signal }), { every: 3000 });
  const [started] = useState(Date.now());
  const none = events.value !== undefined && events.value.events.length === 0 && events.value.next_cursor === null;
  const [fresh, setFresh] = useState(false);
  if (none && !fresh) setFresh(true);
  if (!fresh || Date.now() - started > 86_400_000) return null;
  const api = API_ROOT.replace(/\/$/, "");
  const key = current().principal.by === "open" ? "" : ' -H "Authorization: Bearer $DISPATCHER_API_KEY"';
  const event = `curl -s ${api}/v1/events${key} -H 'Content-Type: application/json' -d '{"type": "invoice.paid", "id": "evt_1", "data": {"amount": 42}}'`;
  const hasSubscription = (subscriptions.value?.subscriptions.length ?? 1) > 0;
  if (APP === "portal") {
    return (
      <section class="panel first">
        <h2>{t.first.portalTitle}</h2>
        <p>{t.first.portal}</p>
        <A page="edit" class="button main">
          {t.actions.newSubscription}
        </A>
      </section>
    );
  }
  return (
    <section class="panel first">
      <h2>{t.first.title}</h2>
      <ol>
        <li class={hasSubscription ? "done" : undefined}>
          <p>{t.first.subscribe}</p>
          <A page="edit" class="button">
            {t.actions.newSubscription}
          </A>
        </li>
        <li class={none ? undefined : "done"}>
          <p>{t.first.publish}</p>
          <pre class="code" tabIndex={0} aria-label={t.first.publish}>
            {event}
          </pre>
          <Copy text={event} label={t.copy} />
        </li>
        <li class={none ? undefined : "done"}>
          {none ? (
            <p role="status">
              <span class="spinner" /> {t.first.waiting}
            </p>
          ) : (
            <>
              <p role="status">{t.first.arrived}</p>
              <EventTable rows={events.value!.events} />
            </>
          )}
        </li>
      </ol>
    </section>
  );
}
