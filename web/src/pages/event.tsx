// One event: that it was published, with what body, and what became of it for every subscription.

import { useState } from "preact/hooks";
import { ask, get } from "../api/client";
import type { EventWithDeliveries, Intervention } from "../api/types";
import { useLoad } from "../state/load";
import { go, place, to } from "../state/place";
import { isOperator, may } from "../state/session";
import { t, word } from "../text/text";
import { A, Badge, Button, Bytes, Copy, Empty, Fact, Facts, Id, Note, Reload, Time, type Tone, Words } from "../ui/bits";
import { columnsOf, DeliveryTable } from "../ui/deliveries";
import { Confirm } from "../ui/dialog";
import { Input } from "../ui/form";
import { Knowledge, Panel } from "../ui/panel";
import { PayloadPanel } from "../ui/payload";
import { Head } from "../ui/shell";
import { Table } from "../ui/table";

export function EventPage() {
  const { query } = place.use();
  const id = query.get("id") ?? "";
  const load = useLoad(`event ${id}`, (signal) => get("/v1/events/{id}", { path: { id }, signal }));
  const events = load.value?.events ?? [];
  return (
    <>
      <Head title={events[0]?.type ?? t.pages.event} under={<Id id={id} />}>
        <Reload call={load.reload} />
        {events[0] && may("resend") ? <DeliverTo event={events[0]} several={events.length > 1} /> : null}
      </Head>
      <Panel title={t.event.published} load={load}>
        {(answer) => (
          <>
            <Knowledge as_of={answer.as_of} gaps={answer.gaps} at={load.at} />
            {answer.events.length > 1 ? <Note tone="warn">{t.event.several(answer.events.length)}</Note> : null}
            {answer.events.map((event) => (
              <OneEvent key={`${event.source.topic}${event.source.partition}${event.source.offset}`} event={event} />
            ))}
          </>
        )}
      </Panel>
      {events.length > 0 ? <Explain id={id} /> : null}
      {events.map((event) => {
        const source = `${event.source.topic}-${event.source.partition}-${event.source.offset}`;
        return <PayloadPanel key={source} id={id} query={{ source }} sha256={event.sha256} />;
      })}
    </>
  );
}

function OneEvent(props: { event: EventWithDeliveries }) {
  const { event } = props;
  return (
    <>
      <Facts>
        <Fact name={t.columns.eventType}>
          <A page="event-type" query={{ id: event.type }}>
            {event.type}
          </A>
        </Fact>
        <Fact name={t.event.publishedAt}>
          <Time at={event.published_at} precision="millisecond" />
        </Fact>
        {isOperator() ? <Fact name={t.columns.tenant}>{event.tenant ?? "–"}</Fact> : null}
        <Fact name={t.payload.size}>{event.size === null ? "–" : <Bytes of={event.size} />}</Fact>
        <Fact name={t.columns.source}>
          <code>
            {event.source.topic}/{event.source.partition}/{String(event.source.offset)}
          </code>
        </Fact>
        {event.sha256 ? (
          <Fact name="SHA-256" wide>
            <span class="id">
              <code class="digest">{event.sha256}</code>
              <Copy text={event.sha256} />
            </span>
          </Fact>
        ) : null}
      </Facts>
      {event.deliveries.length === 0 ? <Empty title={t.event.noDeliveries} /> : <DeliveryTable caption={t.pages.deliveries} rows={event.deliveries} columns={columnsOf({ event: false })} />}
    </>
  );
}

const OUTCOME_TONES: Record<string, Tone> = { delivered: "good", retrying: "warn", pending: "info", dead: "bad" };

function Explain(props: { id: string }) {
  const load = useLoad(`explain ${props.id}`, (signal) => get("/v1/events/{id}/explain", { path: { id: props.id }, signal }));
  return (
    <Panel title={t.event.explain} load={load}>
      {(answer) => (
        <>
          <Knowledge as_of={answer.as_of} gaps={answer.gaps} at={load.at} />
          {answer.events.map((event) => {
            const source = `${event.source.topic}/${event.source.partition}/${String(event.source.offset)}`;
            return (
              <div key={source}>
                {answer.events.length > 1 ? (
                  <h3>
                    <Time at={event.published_at} /> <code class="faint">{source}</code>
                  </h3>
                ) : null}
                {event.explanations.length === 0 ? (
                  <Empty title={t.event.nobody}>
                    <A page="edit">{t.actions.newSubscription}</A>
                  </Empty>
                ) : (
                  <Table
                    caption={t.event.explain}
                    rows={event.explanations}
                    id={(row) => row.subscription_id}
                    href={(row) => (row.delivery_id ? to("delivery", { id: row.delivery_id }) : to("subscription", { id: row.subscription_id }))}
                    columns={[
                      { name: t.columns.subscription, cell: (row) => <Words of={row.subscription_id} /> },
                      { name: t.event.outcome, cell: (row) => <Badge tone={OUTCOME_TONES[row.outcome] ?? "calm"}>{word(t.explained, row.outcome)}</Badge> },
                      { name: t.event.because, cell: (row) => <span class="break">{row.sentence}</span>, wide: true },
                    ]}
                  />
                )}
                {event.cut ? <p class="faint small">{t.event.cut}</p> : null}
              </div>
            );
          })}
        </>
      )}
    </Panel>
  );
}

/** Deliver the event to a subscription that didn't get it. */
function DeliverTo(props: { event: EventWithDeliveries; several: boolean }) {
  const { event } = props;
  const [open, setOpen] = useState(false);
  const [subscription, setSubscription] = useState("");
  return (
    <>
      <Button onClick={() => setOpen(true)}>{t.actions.deliverTo}</Button>
      {open ? (
        <Confirm
          title={t.actions.deliverTo}
          label={t.actions.deliver}
          close={() => setOpen(false)}
          act={async () => {
            const { value } = await ask<Intervention>("POST", "/v1/events/{id}/deliveries", {
              path: { id: event.id },
              body: { subscription: subscription.trim(), ...(props.several ? { source: event.source } : {}) },
            });
            go(to("delivery", { id: value.delivery_id }));
          }}
        >
          <p>{t.event.deliverWhat}</p>
          <Input label={t.columns.subscription} value={subscription} set={setSubscription} required placeholder="sub_…" />
        </Confirm>
      ) : null}
    </>
  );
}
