// What is different where the deliveries are what a local receiver got (`dispatcher listen --inspect`): whether the signature
// verifies, why not, and what was answered.

import type { Delivery, ReceivedRequest } from "../api/types";
import { whyNot } from "../state/signature";
import { t, word } from "../text/text";
import { Badge, Bytes, Copy, Duration, Fact, Facts, Id, Note, Time, Words, type Tone } from "./bits";
import type { FilterField } from "./filters";
import type { Column } from "./table";

export function receivedOf(row: Delivery): ReceivedRequest {
  return (row as Delivery & { received: ReceivedRequest }).received;
}

export function receivedFields(): FilterField[] {
  return [
    { name: "state", label: t.columns.answer, options: (["delivered", "failed", "pending"] as const).map((each) => [each, t.inspect.states[each]]) },
    { name: "reason", label: t.inspect.signature, options: Object.entries(t.inspect.verdicts) },
    { name: "status", label: t.columns.status, help: t.filters.statusHelp },
    { name: "event_type", label: t.columns.eventType, help: t.filters.typeHelp },
    { name: "event", label: "webhook-id" },
  ];
}

export function receivedColumns(): Column<Delivery>[] {
  return [
    { name: t.columns.time, cell: (row) => <Time at={row.last_attempt_at} precision="millisecond" /> },
    { name: t.inspect.signature, cell: (row) => <SignatureBadge of={receivedOf(row)} /> },
    { name: t.columns.answer, cell: (row) => <AnswerBadge row={row} /> },
    { name: t.columns.eventType, cell: (row) => (row.event_type ? <Words of={row.event_type} /> : "–") },
    { name: "webhook-id", cell: (row) => <Words of={row.event_id} /> },
    { name: t.delivery.request, cell: (row) => <Words of={`${receivedOf(row).method} ${new URL(receivedOf(row).url).pathname}`} />, spare: true },
    { name: t.columns.attempts, cell: (row) => row.attempts, right: true },
    { name: t.payload.size, cell: (row) => <Bytes of={receivedOf(row).size} />, right: true },
  ];
}

const TONES: Record<ReceivedRequest["signature"]["verdict"], Tone> = { valid: "good", missing: "warn", stale: "warn", wrong: "bad" };

export function SignatureBadge(props: { of: ReceivedRequest }) {
  const { verdict } = props.of.signature;
  return <Badge tone={TONES[verdict]}>{word(t.inspect.verdicts, verdict)}</Badge>;
}

function AnswerBadge(props: { row: Delivery }) {
  const { row } = props;
  if (row.status !== null) return <Badge tone={row.status < 300 ? "good" : "bad"}>{row.status}</Badge>;
  return <Badge tone={row.state === "pending" ? "info" : "bad"}>{t.inspect.answers[receivedOf(row).answer]}</Badge>;
}

/** Under a row: why its signature doesn't verify, and what the sender makes of the answer. */
export function ReceivedUnder(props: { row: Delivery }) {
  const { signature } = receivedOf(props.row);
  return (
    <span class="why">
      {signature.verdict === "valid" ? null : <span class="break">{whyNot(signature, t)} </span>}
      <span class="faint">{after(props.row)}</span>
    </span>
  );
}

/** What the sender does next. */
function after(row: Delivery): string {
  const { answer } = receivedOf(row);
  if (answer !== "answered") return t.inspect.after[answer];
  return row.status === 410 ? t.inspect.after.gone : row.state === "delivered" ? t.inspect.after.acknowledged : t.inspect.after.refused;
}

export function SignatureFact(props: { of: ReceivedRequest }) {
  const { signature } = props.of;
  return (
    <>
      <Fact name={t.inspect.signature} wide>
        <SignatureBadge of={props.of} /> {whyNot(signature, t)}
      </Fact>
      {signature.verdict === "wrong" && signature.expected !== null ? (
        <Fact name={t.inspect.expected} wide>
          <span class="id">
            <code class="break">{signature.expected}</code>
            <Copy text={signature.expected} />
          </span>
        </Fact>
      ) : null}
    </>
  );
}

/** The newest request of a delivery: what came, and what was answered. */
export function Received(props: { row: Delivery }) {
  const { row } = props;
  const found = receivedOf(row);
  return (
    <>
      <p>
        <SignatureBadge of={found} /> <AnswerBadge row={row} /> {after(row)}
      </p>
      {found.signature.verdict === "valid" ? null : <Note tone={TONES[found.signature.verdict]}>{whyNot(found.signature, t)}</Note>}
      <Facts>
        <Fact name="webhook-id">
          <Id id={row.event_id} />
        </Fact>
        <Fact name={t.columns.eventType}>{row.event_type || "–"}</Fact>
        <Fact name={t.columns.time}>
          <Time at={row.last_attempt_at} precision="millisecond" />
        </Fact>
        <Fact name={t.columns.attempts}>{row.attempts}</Fact>
        <Fact name={t.payload.size}>
          <Bytes of={found.size} />
        </Fact>
        <Fact name={t.payload.type}>{found.content_type ?? "–"}</Fact>
        <Fact name={t.columns.url} wide>
          <span class="break">
            {found.method} {found.url}
          </span>
        </Fact>
        {row.duration_ms > 0 ? (
          <Fact name={t.columns.duration}>
            <Duration ms={row.duration_ms} />
          </Fact>
        ) : null}
      </Facts>
    </>
  );
}
