// One delivery: what became of it, attempt by attempt, and what can be done.

import { useEffect, useRef, useState } from "preact/hooks";
import { ask, get } from "../api/client";
import type { Attempt, Delivery, DeliveryDetail, Intervention } from "../api/types";
import { instant } from "../format/time";
import { curl, headerLines, phasesOf } from "../state/attempts";
import { useStream, type StreamRow } from "../state/live";
import { useLoad } from "../state/load";
import { APP, changed, go, place } from "../state/place";
import { isOperator, may } from "../state/session";
import { failureText, verdict } from "../state/verdict";
import { span, t, word } from "../text/text";
import { A, Badge, Button, Bytes, Copy, Distance, Duration, Fact, Facts, Id, Note, Reload, StateBadge, Time, type Tone } from "../ui/bits";
import { Done } from "../ui/audit";
import { asProblem, Confirm } from "../ui/dialog";
import { Knowledge, Panel, problemTexts } from "../ui/panel";
import { loadPayload, PayloadView, Text } from "../ui/payload";
import { Received, SignatureBadge, SignatureFact } from "../ui/received";
import { Head } from "../ui/shell";

export function DeliveryPage() {
  const { query } = place.use();
  const id = query.get("id") ?? "";
  const load = useLoad(`delivery ${id}`, (signal) => get("/v1/deliveries/{id}", { path: { id }, signal }));
  const row = load.value?.delivery;
  const [news, setNews] = useState(false);
  const reload = () => {
    setNews(false);
    load.reload();
  };
  const follow = useFollow(id, reload);
  useEffect(() => setNews(false), [load.at]);
  useStream((event) => {
    if (event.event !== "deliveries") return;
    const rows = (JSON.parse(event.data) as { deliveries: StreamRow[] }).deliveries;
    // The stream tells once a second: of what the page has asked for meanwhile, too.
    const shown = instant(row?.last_attempt_at) ?? 0;
    if (rows.some((each) => each.id === id && (instant(each.at) ?? 0) > shown)) setNews(true);
  });
  return (
    <>
      <Head title={row?.event_type || t.pages.delivery} under={<Id id={id} />}>
        <Reload call={reload} />
        {row ? <Actions row={row} follow={follow.start} /> : null}
      </Head>
      {follow.state ? <FollowNote state={follow.state} /> : null}
      {news && !follow.state?.open ? (
        <Note tone="info" live actions={<Button kind="small" onClick={reload}>{t.show}</Button>}>
          {t.news.thisDelivery}
        </Note>
      ) : null}
      <Panel title={t.delivery.now} load={load}>
        {(detail) => (
          <>
            <Knowledge as_of={detail.as_of} gaps={detail.gaps} at={load.at} />
            {APP === "inspect" ? <Received row={detail.delivery} /> : <Standing row={detail.delivery} detail={detail} />}
          </>
        )}
      </Panel>
      <Panel title={t.delivery.attempts} load={load} lines={5}>
        {(detail) => <Attempts detail={detail} />}
      </Panel>
      {load.value ? <Payload detail={load.value} /> : null}
      {APP === "inspect" ? null : <Done id={id} />}
    </>
  );
}

function Standing(props: { row: Delivery; detail: DeliveryDetail }) {
  const { row } = props;
  const found = verdict(row, t);
  return (
    <>
      {found ? (
        <div class={`verdict ${row.state}`}>
          <StateBadge state={row.state} />
          <dl>
            <dt>{t.verdict.whyTitle}</dt>
            <dd class="break">{found.why}</dd>
            <dt>{t.verdict.nextTitle}</dt>
            <dd>
              {found.when === null ? (
                found.next
              ) : (
                <>
                  {found.next.replace(/\.$/, "")}, <Distance at={found.when} coming />: <Time at={found.when} />.
                </>
              )}
            </dd>
            <dt>{t.verdict.todoTitle}</dt>
            <dd>
              {found.todo} {["subscription", "resume", "enable"].includes(found.remedy) ? <A page="subscription" query={{ id: row.subscription_id }}>{t.actions.openSubscription}</A> : null}
            </dd>
          </dl>
        </div>
      ) : (
        <p>
          <StateBadge state={row.state} /> {t.delivery.deliveredAt} <Time at={row.last_attempt_at} precision="millisecond" />
        </p>
      )}
      <Facts>
        <Fact name={t.columns.event}>
          <Id id={row.event_id} page="event" />
        </Fact>
        <Fact name={t.columns.eventType}>{row.event_type}</Fact>
        <Fact name={t.columns.subscription}>
          <Id id={row.subscription_id} page="subscription" />
        </Fact>
        {isOperator() ? <Fact name={t.columns.tenant}>{row.tenant ? <A page="deliveries" query={{ tenant: row.tenant }}>{row.tenant}</A> : "–"}</Fact> : null}
        <Fact name={t.columns.host}>{row.host ? <A page="deliveries" query={{ host: row.host }}>{row.host}</A> : "–"}</Fact>
        <Fact name={t.columns.attempts}>{row.attempts}</Fact>
        <Fact name={t.columns.time}>
          <Time at={row.created_at} precision="millisecond" />
        </Fact>
        {row.generation > 1 ? <Fact name={t.columns.generation}>{row.generation}</Fact> : null}
        <Fact name={t.columns.source}>
          <code>
            {row.source.topic}/{row.source.partition}/{String(row.source.offset)}
          </code>
        </Fact>
        {props.detail.dead_letter && isOperator() ? (
          <Fact name={t.pages["dead-letters"]}>
            <A page="dead-letters" query={{ partition: props.detail.dead_letter.partition }}>
              {props.detail.dead_letter.partition}-{String(props.detail.dead_letter.offset)}
            </A>
          </Fact>
        ) : null}
      </Facts>
    </>
  );
}

const DECISION_TONES: Record<string, Tone> = { delivered: "good", retry: "warn", parked: "info", dead: "bad", dropped: "calm", left_to_another: "calm" };

/** Which attempt the address names; the last one where it names none. */
function chosenOf(query: URLSearchParams, count: number): number {
  const asked = Number(query.get("attempt"));
  return query.has("attempt") && asked >= 0 && asked < count ? asked : count - 1;
}

function Attempts(props: { detail: DeliveryDetail }) {
  const { query } = place.use();
  const attempts = props.detail.attempts as unknown as Attempt[];
  const at = chosenOf(query, attempts.length);
  const chosen = attempts[at];
  if (!chosen) return <p class="faint">{t.delivery.noAttempts}</p>;
  const longest = Math.max(1, ...attempts.map((each) => (each.queue_ms ?? 0) + (each.total_ms ?? 0)));
  return (
    <>
      <ol class="timeline">
        {attempts.map((each, i) => (
          <li key={`${each.time_ms} ${each.generation ?? 1} ${each.decision}`} class={i === at ? "here" : undefined}>
            <a href={changed({ attempt: i })} aria-current={i === at ? "true" : undefined}>
              <span class={`dot ${DECISION_TONES[each.decision] ?? "calm"}`} />
              <span class="when">
                <Time at={each.time_ms} precision="millisecond" />
              </span>
              <span class="what">
                {each.received ? <SignatureBadge of={each.received} /> : <Badge tone={DECISION_TONES[each.decision] ?? "calm"}>{word(t.decisions, each.decision)}</Badge>} {each.total_ms === undefined ? null : `${t.delivery.attempt(each.attempt)}:`}{" "}
                <span class="break">{outcomeOf(each)}</span>
              </span>
              <span class="bar">
                <Bar attempt={each} longest={longest} />
              </span>
              <span class="length">{each.total_ms === undefined ? "" : span(each.total_ms)}</span>
            </a>
          </li>
        ))}
        <Coming row={props.detail.delivery} />
      </ol>
      <AttemptView attempt={chosen} row={props.detail.delivery} />
    </>
  );
}

function outcomeOf(attempt: Attempt): string {
  if (attempt.received && attempt.received.answer !== "answered") return t.inspect.answers[attempt.received.answer];
  if (attempt.failure) return failureText(attempt.failure, t);
  if (attempt.status !== undefined) return `HTTP ${attempt.status}`;
  if (attempt.reason) {
    const all: Readonly<Record<string, { why: string } | undefined>> = { ...t.parkReasons, ...t.deadReasons, ...t.droppedReasons };
    const known = all[attempt.reason];
    return known ? known.why : attempt.reason;
  }
  return attempt.detail ?? "";
}

function Coming(props: { row: Delivery }) {
  const { row } = props;
  if (!row.next_attempt_at || (row.state !== "retrying" && row.state !== "pending")) return null;
  return (
    <li class="coming">
      <span>
        <span class="dot coming" />
        <span class="when">
          <Time at={row.next_attempt_at} />
        </span>
        <span class="what faint">
          {t.delivery.attempt(row.attempts + 1)} <Distance at={row.next_attempt_at} coming />
        </span>
      </span>
    </li>
  );
}

function Bar(props: { attempt: Attempt; longest: number; only?: string }) {
  const phases = phasesOf(props.attempt).filter((phase) => props.only === undefined || phase.name === props.only);
  const set = (phase: { start: number; length: number }) => (element: SVGRectElement | null) => {
    if (!element) return;
    element.setAttribute("x", String((phase.start / props.longest) * 1000));
    element.setAttribute("width", String(Math.max(3, (phase.length / props.longest) * 1000)));
  };
  if (phases.length === 0) return null;
  return (
    <svg viewBox="0 0 1000 12" preserveAspectRatio="none" role="img" aria-label={phases.map((phase) => `${t.phases[phase.name]} ${span(phase.length)}`).join(", ")}>
      {phases.map((phase) => (
        <rect key={phase.name} class={phase.name} y="0" height="12" ref={set(phase)} />
      ))}
    </svg>
  );
}

function AttemptView(props: { attempt: Attempt; row: Delivery }) {
  const { attempt } = props;
  const phases = phasesOf(attempt);
  const requestHeaders = headerLines(attempt.request_headers);
  const responseHeaders = headerLines(attempt.response_headers);
  const text = attempt.response ?? (attempt.response_base64 !== undefined ? `base64: ${attempt.response_base64}` : null);
  return (
    <div class="attempt">
      <h3>
        {attempt.total_ms === undefined ? word(t.decisions, attempt.decision) : t.delivery.attempt(attempt.attempt)} · <Time at={attempt.time_ms} precision="millisecond" />
      </h3>
      <Facts>
        <Fact name={t.delivery.outcome} wide>
          {outcomeOf(attempt)}
          {attempt.detail && attempt.failure ? <span class="block faint break">{attempt.detail}</span> : null}
        </Fact>
        {attempt.received ? <SignatureFact of={attempt.received} /> : null}
        {attempt.due_ms !== undefined ? (
          <Fact name={t.delivery.next}>
            <Time at={attempt.due_ms} />
          </Fact>
        ) : null}
        {attempt.remote_address ? <Fact name={t.delivery.remote}><code>{attempt.remote_address}</code></Fact> : null}
        {attempt.replica ? <Fact name={t.columns.replica}><span class="break">{attempt.replica}</span></Fact> : null}
        {attempt.triggered_by ? <Fact name={t.delivery.triggeredBy}>{attempt.triggered_by}</Fact> : null}
        {attempt.replay ? (
          <Fact name={t.pages.replay}>
            <Id id={attempt.replay} page="replay" />
          </Fact>
        ) : null}
        {(attempt.generation ?? 1) > 1 ? <Fact name={t.columns.generation}>{attempt.generation}</Fact> : null}
      </Facts>
      {phases.length > 0 ? (
        <table class="phases">
          <caption>{t.phases.title}</caption>
          <tbody>
            {phases.map((phase) => (
              <tr key={phase.name}>
                <th scope="row">
                  <i class={`swatch ${phase.name}`} />
                  {t.phases[phase.name]}
                </th>
                <td class="right">{span(phase.length)}</td>
                <td class="bar">
                  <Bar attempt={attempt} longest={Math.max(1, (attempt.queue_ms ?? 0) + (attempt.total_ms ?? 0))} only={phase.name} />
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      ) : null}
      <div class="halves">
        <div>
          <h4>{t.delivery.request}</h4>
          <p class="code break">
            {attempt.received?.method ?? "POST"} {attempt.host ?? props.row.host ?? "?"}
            {attempt.path ?? ""}
          </p>
          <Headers lines={requestHeaders} />
        </div>
        <div>
          <h4>{t.delivery.response}</h4>
          {attempt.status !== undefined ? (
            <p class="code">
              HTTP {attempt.status}
              {attempt.response_bytes !== undefined ? (
                <>
                  {" · "}
                  <Bytes of={attempt.response_bytes} />
                </>
              ) : null}
              {attempt.first_byte_ms !== undefined ? (
                <>
                  {" · "}
                  <Duration ms={attempt.first_byte_ms} />
                </>
              ) : null}
            </p>
          ) : (
            <p class="faint">{t.delivery.noResponse}</p>
          )}
          <Headers lines={responseHeaders.length > 0 ? responseHeaders : ([["retry-after", attempt.retry_after], ["location", attempt.location]] as const).flatMap(([name, value]): [string, string][] => (value === undefined ? [] : [[name, value]]))} />
          {text !== null && text !== "" ? <Text text={text} label={t.delivery.response} /> : null}
        </div>
      </div>
    </div>
  );
}

function Headers(props: { lines: [string, string][] }) {
  if (props.lines.length === 0) return null;
  return (
    <div class="code headers" tabIndex={0} role="group" aria-label={t.delivery.headers}>
      {props.lines.map(([name, value], i) => (
        <div key={i}>
          <span class="key">{name}</span>: {value}
        </div>
      ))}
    </div>
  );
}

function Payload(props: { detail: DeliveryDetail }) {
  const { query } = place.use();
  const attempts = props.detail.attempts as unknown as Attempt[];
  const received = attempts[chosenOf(query, attempts.length)]?.received;
  const row = props.detail.delivery;
  const source = received ? `${row.source.topic}-${row.source.partition}-${received.serial}` : `${row.source.topic}-${row.source.partition}-${row.source.offset}`;
  const load = useLoad(`payload ${row.event_id} ${source}`, (signal) => loadPayload(row.event_id, { source }, signal));
  const subscription = useLoad(received ? null : `subscription ${row.subscription_id}`, (signal) => get("/v1/subscriptions/{id}", { path: { id: row.subscription_id }, signal }));
  const url = received?.url ?? subscription.value?.url;
  return (
    <Panel
      title={t.payload.title}
      load={load}
      lines={6}
      actions={
        load.value && url ? (
          <Copy
            label={t.delivery.curl}
            text={() => {
              const recorded = headerLines(received ? attempts[chosenOf(query, attempts.length)]!.request_headers : [...attempts].reverse().find((each) => each.request_headers)?.request_headers);
              const plain: [string, string][] = [
                ["content-type", load.value!.type || "application/json"],
                ["webhook-id", row.event_id],
                ["webhook-event-type", row.event_type],
              ];
              return curl(url, recorded.length > 0 ? recorded : plain, load.value!.bytes);
            }}
          />
        ) : null
      }
    >
      {(payload) => <PayloadView payload={payload} name={row.event_id} />}
    </Panel>
  );
}

// What can be done, and what came of it.

type Action = "retry" | "cancel";

function Actions(props: { row: Delivery; follow: (action: Action, answer: Intervention) => void }) {
  const { row } = props;
  const { query } = place.use();
  const [open, setOpen] = useState<"" | Action>("");
  const wished = query.get("do");
  useEffect(() => {
    if (wished === "retry" && may("resend")) setOpen("retry");
    if (wished) go(changed({ do: null }), { replace: true });
  }, [wished]);
  if (!may("resend")) return null;
  const waiting = row.state === "pending" || row.state === "retrying";
  const act = (action: Action) => async () => {
    const { value } = await ask<Intervention>("POST", `/v1/deliveries/{id}/${action}`, { path: { id: row.id } });
    props.follow(action, value);
  };
  return (
    <>
      <Button kind="main" onClick={() => setOpen("retry")}>
        {t.actions.retry}
      </Button>
      {waiting ? <Button onClick={() => setOpen("cancel")}>{t.actions.cancelDelivery}</Button> : null}
      {open === "retry" ? (
        <Confirm title={t.actions.retry} label={t.actions.retry} close={() => setOpen("")} act={act("retry")}>
          <p>{t.delivery.retryWhat(row.subscription_id)}</p>
          {row.state === "delivered" ? <Note tone="warn">{t.delivery.retryDelivered}</Note> : null}
        </Confirm>
      ) : null}
      {open === "cancel" ? (
        <Confirm title={t.actions.cancelDelivery} label={t.actions.cancelDelivery} danger close={() => setOpen("")} act={act("cancel")}>
          <p>{t.delivery.cancelWhat}</p>
        </Confirm>
      ) : null}
    </>
  );
}

interface FollowState {
  action: Action;
  open: boolean;
  tone: Tone;
  text: string;
}

const FOLLOWED = 120_000; // milliseconds until the page stops following by itself

/** After an action: look again until its attempt has ended, and say how. */
function useFollow(id: string, reload: () => void) {
  const [state, setState] = useState<FollowState | null>(null);
  const timer = useRef<ReturnType<typeof setTimeout>>(undefined);
  const left = useRef(false);
  const latest = useRef(reload);
  latest.current = reload;
  useEffect(
    () => () => {
      left.current = true;
      clearTimeout(timer.current);
    },
    [],
  );
  const start = (action: Action, answer: Intervention) => {
    const began = Date.now();
    setState({ action, open: true, tone: "info", text: action === "retry" ? t.follow.retrying : t.follow.cancelling });
    const look = async () => {
      let next: FollowState | null = null;
      try {
        const detail = await get("/v1/deliveries/{id}", { path: { id } });
        next = outcome(action, answer, detail);
      } catch (error) {
        const problem = asProblem(error);
        if (problem.status !== 404 && problem.status !== 0 && problem.status !== 503) next = { action, open: false, tone: "bad", text: problemTexts(problem).detail };
      }
      if (left.current) return;
      if (next === null && Date.now() - began > FOLLOWED) next = { action, open: false, tone: "warn", text: t.follow.tooLong };
      if (next) {
        setState(next);
        latest.current();
        return;
      }
      timer.current = setTimeout(() => void look(), Date.now() - began < 10_000 ? 500 : 2000);
    };
    timer.current = setTimeout(() => void look(), 300);
  };
  return { state, start };
}

/** What came of an action, once it is known. */
export function outcome(action: Action, answer: Pick<Intervention, "generation" | "requested_at">, detail: DeliveryDetail): FollowState | null {
  const row = detail.delivery;
  const since = instant(answer.requested_at) ?? 0;
  if (action === "cancel") {
    if (row.state === "dropped") return { action, open: false, tone: "good", text: t.follow.cancelled };
    if (row.state === "delivered" || row.state === "dead") return { action, open: false, tone: "warn", text: t.follow.tooLate(word(t.states, row.state)) };
    return null;
  }
  if (row.generation < answer.generation) return null;
  const tried = (detail.attempts as unknown as Attempt[]).filter((each) => (each.generation ?? 1) >= answer.generation && each.time_ms >= since - 60_000);
  const last = tried[tried.length - 1];
  if (!last) return null;
  if (row.state === "delivered") return { action, open: false, tone: "good", text: t.follow.delivered(last.status ?? 0) };
  if (last.decision === "parked") return { action, open: false, tone: "warn", text: t.follow.waits(outcomeOf(last)) };
  return { action, open: false, tone: "bad", text: t.follow.failed(outcomeOf(last)) };
}

function FollowNote(props: { state: FollowState }) {
  return (
    <Note tone={props.state.tone} live>
      {props.state.open ? <span class="spinner" /> : null} {props.state.text}
    </Note>
  );
}

