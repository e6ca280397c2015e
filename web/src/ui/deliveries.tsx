// Deliveries as rows, wherever they are listed.

import type { Delivery } from "../api/types";
import { APP, to } from "../state/place";
import { answerText, verdict, type Verdict } from "../state/verdict";
import { isOperator, may } from "../state/session";
import { t } from "../text/text";
import { A, Distance, Duration, StateBadge, Time, Words } from "./bits";
import { ReceivedUnder } from "./received";
import { Table, type Column } from "./table";

export function lastAnswer(row: Delivery): string {
  if (row.failure) return row.failure;
  return row.status === null ? "–" : String(row.status);
}

const tone = (row: Delivery) => (row.failure || (row.status !== null && row.status >= 300) ? "bad-text" : row.status !== null ? "good-text" : "faint");

export function columnsOf(options: { event?: boolean; subscription?: boolean } = {}): Column<Delivery>[] {
  return [
    { name: t.columns.time, cell: (row) => <Time at={row.created_at} /> },
    { name: t.columns.state, cell: (row) => <StateBadge state={row.state} /> },
    { name: t.columns.eventType, cell: (row) => <Words of={row.event_type} />, hidden: options.event === false },
    {
      name: t.columns.subscription,
      cell: (row) => (
        <A page="subscription" query={{ id: row.subscription_id }} class="above">
          <Words of={row.subscription_id} />
        </A>
      ),
      hidden: options.subscription === false,
    },
    { name: t.columns.tenant, cell: (row) => row.tenant ?? <span class="faint">–</span>, hidden: !isOperator() },
    { name: t.columns.host, cell: (row) => row.host ? <Words of={row.host} /> : "–", spare: true },
    {
      name: t.columns.answer,
      cell: (row) => (
        <span class={tone(row)} title={answerText(row, t)}>
          {lastAnswer(row)}
        </span>
      ),
    },
    { name: t.columns.attempts, cell: (row) => row.attempts, right: true },
    { name: t.columns.duration, cell: (row) => (row.attempts > 0 ? <Duration ms={row.duration_ms} /> : "–"), right: true },
  ];
}

/** Under a row that isn't delivered: why, what comes next, when, and the one thing to do. */
export function Under(props: { row: Delivery; here?: boolean | undefined }) {
  if (APP === "inspect") return <ReceivedUnder row={props.row} />;
  const found = verdict(props.row, t);
  if (found === null) return null;
  return (
    <span class="why">
      <span class="break">{found.why}</span> <Next found={found} /> {props.here && found.remedy !== "retry" && found.remedy !== "publish" ? <span class="faint">{found.todo}</span> : <Todo row={props.row} found={found} />}
    </span>
  );
}

/** What comes next, and in how long. */
export function Next(props: { found: Verdict }) {
  const { next, when } = props.found;
  if (when === null) return <span class="faint">{next}</span>;
  return (
    <span class="faint">
      {next.replace(/\.$/, "")}, <Distance at={when} coming />.
    </span>
  );
}

/** The one thing to do, as a link to where it is done. */
export function Todo(props: { row: Delivery; found: Verdict }) {
  const { row, found } = props;
  switch (found.remedy) {
    case "retry":
      return may("resend") ? (
        <A page="delivery" query={{ id: row.id, do: "retry" }} class="above" title={found.todo}>
          {t.actions.retry}
        </A>
      ) : null;
    case "subscription":
    case "resume":
    case "enable":
      return (
        <A page="subscription" query={{ id: row.subscription_id }} class="above" title={found.todo}>
          {t.actions.openSubscription}
        </A>
      );
    case "publish":
      return (
        <A page="event" query={{ id: row.event_id }} class="above" title={found.todo}>
          {t.actions.openEvent}
        </A>
      );
    default:
      return <span class="faint">{found.todo}</span>;
  }
}

export function DeliveryTable(props: { rows: readonly Delivery[]; caption: string; columns: Column<Delivery>[]; here?: boolean; pick?: (row: Delivery) => preact.ComponentChildren; pickAll?: preact.ComponentChildren }) {
  return (
    <Table
      caption={props.caption}
      rows={props.rows}
      columns={props.columns}
      id={(row) => row.id}
      href={(row) => to("delivery", { id: row.id })}
      name={(row) => `${row.event_type}, ${t.states[row.state] ?? row.state}, ${row.id}`}
      under={(row) => (row.state === "delivered" && (APP !== "inspect" || row.reason === null) ? null : <Under row={row} here={props.here} />)}
      {...(props.pick ? { pick: props.pick, pickAll: props.pickAll } : {})}
    />
  );
}

