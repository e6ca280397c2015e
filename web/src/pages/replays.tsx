// Many deliveries sent again: a plan first, then a job that can be watched, paused and cancelled.

import { useEffect, useRef, useState } from "preact/hooks";
import { ask, get } from "../api/client";
import type { Plan, Replay, ReplayShown } from "../api/types";
import { countText, percentText, rateText } from "../format/numbers";
import { readTime, timeText, utcText } from "../format/time";
import { useLoad } from "../state/load";
import { changed, go, place, to } from "../state/place";
import { zoneName } from "../state/preferences";
import { isOperator, may } from "../state/session";
import { language, span, t, word } from "../text/text";
import { A, Badge, Button, Distance, Empty, Fact, Facts, Id, Note, Reload, Time, type Tone } from "../ui/bits";
import { asProblem, Confirm } from "../ui/dialog";
import { Done } from "../ui/audit";
import { Pager } from "../ui/filters";
import { Input, Select } from "../ui/form";
import { Panel, ProblemNote, Section } from "../ui/panel";
import { Head } from "../ui/shell";
import { Table } from "../ui/table";
import type { Problem } from "../api/client";

const TONES: Record<string, Tone> = { planned: "info", running: "info", paused: "warn", done: "good", cancelled: "calm", failed: "bad" };

export function Replays() {
  const { query } = place.use();
  const making = query.has("new");
  const load = useLoad(`replays ${query.get("cursor") ?? ""}`, (signal) => get("/v1/replays", { query: { cursor: query.get("cursor"), limit: 50 }, signal }));
  return (
    <>
      <Head title={t.pages.replays} under={t.replay.what}>
        <Reload call={load.reload} />
        {may("resend") && !making ? (
          <a class="button main" href={changed({ new: "dead_letters" })}>
            {t.replay.make}
          </a>
        ) : null}
      </Head>
      {making ? <Make key={query.toString()} /> : null}
      <Panel title={t.list.title} load={load} lines={5}>
        {(page) => (
          <>
            {page.replays.length === 0 ? (
              <Empty title={t.replay.none} />
            ) : (
              <Table
                caption={t.pages.replays}
                rows={page.replays}
                id={(row) => row.id}
                href={(row) => to("replay", { id: row.id })}
                columns={[
                  { name: t.columns.created, cell: (row) => <Time at={row.created_at} /> },
                  { name: t.columns.state, cell: (row) => <Badge tone={TONES[row.state] ?? "calm"}>{word(t.replay.states, row.state)}</Badge> },
                  { name: t.replay.source, cell: (row) => word(t.replay.sources, row.source) },
                  { name: t.columns.subscription, cell: (row) => <span class="break">{row.subscription ?? "–"}</span> },
                  { name: t.columns.tenant, cell: (row) => row.tenant ?? "–", hidden: !isOperator() },
                  { name: t.replay.progress, cell: (row) => (row.progress.fraction === null ? "–" : percentText(row.progress.fraction, language)), right: true },
                  { name: t.replay.sent, cell: (row) => countText(row.progress.sent, language), right: true },
                  { name: t.audit.by, cell: (row) => row.created_by },
                ]}
              />
            )}
            <Pager end={t.pager.all} next={page.next_cursor} shown={page.replays.length} />
          </>
        )}
      </Panel>
    </>
  );
}

/** What is to be sent again, from the address: a list's filters and time, frozen when its button was clicked. */
function Make() {
  const { query } = place.get();
  const zone = zoneName();
  const shownTime = (name: string) => {
    const text = query.get(name);
    return text ? timeText(Date.parse(text), zone) : "";
  };
  const [source, setSource] = useState(["dead_letters", "deliveries", "events"].includes(query.get("new") ?? "") ? query.get("new")! : "dead_letters");
  const [subscription, setSubscription] = useState(query.get("subscription") ?? "");
  const [tenant, setTenant] = useState(query.get("tenant") ?? "");
  const [types, setTypes] = useState(query.get("event_types") ?? "");
  const [states, setStates] = useState(query.get("states") ?? "");
  const [codes, setCodes] = useState(query.get("status_codes") ?? "");
  const [reasons, setReasons] = useState(query.get("reasons") ?? "");
  const [since, setSince] = useState(shownTime("since") || timeText(Date.now() - 86_400_000, zone));
  const [until, setUntil] = useState(shownTime("until"));
  const [rate, setRate] = useState(query.get("rate") ?? "200/s");
  const [plan, setPlan] = useState<Plan | null>(null);
  const [asked, setAsked] = useState<Record<string, unknown> | null>(null);
  const [problem, setProblem] = useState<Problem | null>(null);
  const [busy, setBusy] = useState(false);
  const list = (text: string) => text.split(/[\s,]+/).filter(Boolean);
  const from = readTime(since, zone);
  const end = until.trim() === "" ? Date.now() : readTime(until, zone);

  const call = async (dry: boolean) => {
    if (Number.isNaN(from) || Number.isNaN(end)) return;
    setBusy(true);
    setProblem(null);
    // What was planned is what is made: the filter and the end of the time are those of the plan.
    const body: Record<string, unknown> = dry
      ? {
          source,
          ...(subscription.trim() ? { subscription: subscription.trim() } : {}),
          ...(tenant.trim() ? { tenant: tenant.trim() } : {}),
          since: utcText(from),
          until: utcText(end),
          ...(list(types).length > 0 ? { event_types: list(types) } : {}),
          ...(source === "deliveries" && list(states).length > 0 ? { states: list(states) } : {}),
          ...(source === "deliveries" && list(codes).length > 0 ? { status_codes: list(codes) } : {}),
          ...(source !== "events" && list(reasons).length > 0 ? { reasons: list(reasons) } : {}),
          ...(rate.trim() ? { rate: rate.trim() } : {}),
        }
      : asked!;
    try {
      const { value } = await ask<ReplayShown>("POST", "/v1/replays", { body: { ...body, dry_run: dry }, timeout: 120_000 });
      if (value.replay) go(to("replay", { id: value.replay.id }));
      setPlan(value.plan ?? null);
      setAsked(body);
    } catch (error) {
      setProblem(asProblem(error));
      setPlan(null);
    }
    setBusy(false);
  };
  const edited =
    <T,>(set: (value: T) => void) =>
    (value: T) => {
      set(value);
      setPlan(null);
    };
  return (
    <Section title={t.replay.make}>
      <form
        class="form"
        onSubmit={(event) => {
          event.preventDefault();
          void call(true);
        }}
      >
        <Select label={t.replay.source} value={source} set={edited(setSource)} options={(["dead_letters", "deliveries", "events"] as const).map((each) => [each, t.replay.sources[each]])} help={t.replay.sourceHelp[source as "events"]} />
        <div class="halves">
          <Input label={t.columns.subscription} value={subscription} set={edited(setSubscription)} wrong={problem?.of("subscription")} help={t.replay.emptyAll} />
          {isOperator() ? <Input label={t.columns.tenant} value={tenant} set={edited(setTenant)} wrong={problem?.of("tenant")} help={t.replay.emptyAll} /> : null}
          <Input label={t.range.since} value={since} set={edited(setSince)} wrong={Number.isNaN(from) ? t.range.noTime : problem?.of("since")} help={t.range.zone(zone)} />
          <Input label={t.range.until} value={until} set={edited(setUntil)} wrong={Number.isNaN(end) ? t.range.noTime : problem?.of("until")} help={t.range.open} />
          <Input label={t.columns.eventTypes} value={types} set={edited(setTypes)} wrong={problem?.of("event_types")} help={t.replay.listHelp} />
          {source === "deliveries" ? <Input label={t.columns.state} value={states} set={edited(setStates)} wrong={problem?.of("states")} help="dead, dropped, delivered" /> : null}
          {source === "deliveries" ? <Input label={t.columns.status} value={codes} set={edited(setCodes)} wrong={problem?.of("status_codes")} help="503, 5xx" /> : null}
          {source !== "events" ? <Input label={t.columns.reason} value={reasons} set={edited(setReasons)} wrong={problem?.of("reasons")} help="exhausted, gone" /> : null}
          <Input label={t.replay.rate} value={rate} set={edited(setRate)} wrong={problem?.of("rate")} help={t.replay.rateHelp} />
        </div>
        {problem ? <ProblemNote problem={problem} /> : null}
        {plan ? <PlanView plan={plan} tenant={tenant} /> : null}
        <div class="actions end">
          <a class="button" href={to("replays")}>
            {t.cancel}
          </a>
          <Button type="submit" kind={plan ? "plain" : "main"} disabled={busy}>
            {t.replay.plan}
          </Button>
          {plan && plan.deliveries > 0 ? (
            <Button kind="main" disabled={busy} onClick={() => void call(false)}>
              {t.replay.start(countText(plan.deliveries, language))}
            </Button>
          ) : null}
        </div>
      </form>
    </Section>
  );
}

function PlanView(props: { plan: Plan; tenant: string }) {
  const { plan } = props;
  const note = useRef<HTMLDivElement>(null);
  // What is planned is read before it is sent: the next thing after it is the button.
  useEffect(() => note.current?.focus(), [plan]);
  return (
    <div ref={note} tabIndex={-1}>
      <Note tone={plan.deliveries > 0 ? "info" : "warn"} live title={t.replay.planned(plan.exact ? countText(plan.deliveries, language) : t.atLeast(countText(plan.deliveries, language)))}>
        {plan.seconds !== null ? t.replay.takes(span(plan.seconds * 1000)) : null} {props.tenant ? `${t.columns.tenant}: ${props.tenant}.` : null}
        <ul>
          <li>
            <Time at={plan.first_at} /> – <Time at={plan.last_at} />
          </li>
          {Object.entries(plan.by_type)
            .slice(0, 10)
            .map(([name, count]) => (
              <li key={name}>
                <code>{name}</code>: {countText(count, language)}
              </li>
            ))}
          {plan.not_active > 0 ? <li>{t.replay.notActive(countText(plan.not_active, language))}</li> : null}
          {plan.warnings.map((each) => (
            <li key={each}>{each}</li>
          ))}
        </ul>
      </Note>
    </div>
  );
}

export function ReplayPage() {
  const { query } = place.use();
  const id = query.get("id") ?? "";
  const [over, setOver] = useState(false);
  const load = useLoad(
    `replay ${id}`,
    async (signal) => {
      const replay: Replay = (await get("/v1/replays/{id}", { path: { id }, signal })).replay!;
      setOver(["done", "cancelled", "failed"].includes(replay.state));
      return replay;
    },
    over ? {} : { every: 2000 },
  );
  const [open, setOpen] = useState<"" | "pause" | "resume" | "cancel">("");
  const act = (verb: string) => async () => {
    await ask("POST", `/v1/replays/{id}/${verb}`, { path: { id } });
    load.reload();
  };
  const state = load.value?.state;
  return (
    <>
      <Head title={t.pages.replay} under={<Id id={id} />}>
        <Reload call={load.reload} />
        {may("resend") && (state === "running" || state === "planned") ? <Button onClick={() => setOpen("pause")}>{t.actions.pause}</Button> : null}
        {may("resend") && state === "paused" ? <Button kind="main" onClick={() => setOpen("resume")}>{t.actions.resume}</Button> : null}
        {may("resend") && (state === "running" || state === "planned" || state === "paused") ? <Button kind="danger" onClick={() => setOpen("cancel")}>{t.replay.cancel}</Button> : null}
      </Head>
      {open !== "" ? (
        <Confirm title={open === "cancel" ? t.replay.cancel : t.actions[open]} label={open === "cancel" ? t.replay.cancel : t.actions[open]} danger={open === "cancel"} close={() => setOpen("")} act={act(open)}>
          <p>{t.replay.verbs[open]}</p>
        </Confirm>
      ) : null}
      <Panel title={t.replay.progress} load={load} lines={6}>
        {(row) => (
          <>
            <p>
              <Badge tone={TONES[row.state] ?? "calm"}>{word(t.replay.states, row.state)}</Badge> {row.detail}
            </p>
            {row.progress.fraction !== null ? (
              <progress max={1} value={row.progress.fraction} aria-label={t.replay.progress}>
                {percentText(row.progress.fraction, language)}
              </progress>
            ) : null}
            <Facts>
              <Fact name={t.replay.sent}>
                <A page="deliveries" query={{ subscription: row.subscription, since: row.created_at }}>
                  {countText(row.progress.sent, language)}
                </A>
              </Fact>
              <Fact name={t.replay.written}>{countText(row.progress.written, language)}</Fact>
              <Fact name={t.replay.looked}>{countText(row.progress.looked, language)}</Fact>
              <Fact name={t.replay.perSecond}>{row.estimate.per_second === null ? "–" : rateText(row.estimate.per_second, language)}</Fact>
              <Fact name={t.replay.ends}>{row.estimate.ends_at && !over ? <Distance at={row.estimate.ends_at} /> : row.ended_at ? <Time at={row.ended_at} /> : "–"}</Fact>
              {Object.entries(row.progress.skipped).map(([name, count]) => (
                <Fact key={name} name={t.replay.skipped(word(t.replay.skips, name))}>
                  {countText(count, language)}
                </Fact>
              ))}
            </Facts>
            <h3>{t.replay.asked}</h3>
            <Facts>
              <Fact name={t.replay.source}>{word(t.replay.sources, row.source)}</Fact>
              <Fact name={t.columns.subscription}>{row.subscription ? <Id id={row.subscription} page="subscription" /> : t.all}</Fact>
              {isOperator() ? <Fact name={t.columns.tenant}>{row.tenant ?? t.all}</Fact> : null}
              <Fact name={t.range.since}>
                <Time at={row.since} />
              </Fact>
              <Fact name={t.range.until}>
                <Time at={row.until} />
              </Fact>
              <Fact name={t.columns.eventTypes}>{row.event_types?.join(", ") || t.all}</Fact>
              {row.states?.length ? <Fact name={t.columns.state}>{row.states.join(", ")}</Fact> : null}
              {row.status_codes?.length ? <Fact name={t.columns.status}>{row.status_codes.join(", ")}</Fact> : null}
              {row.reasons?.length ? <Fact name={t.columns.reason}>{row.reasons.join(", ")}</Fact> : null}
              <Fact name={t.replay.rate}>{row.rate ?? "–"}</Fact>
              <Fact name={t.columns.created}>
                <Time at={row.created_at} />
              </Fact>
              <Fact name={t.audit.by}>{row.created_by}</Fact>
              {row.runner ? <Fact name={t.columns.replica}>{row.runner}</Fact> : null}
            </Facts>
          </>
        )}
      </Panel>
      <Done id={id} />
    </>
  );
}
