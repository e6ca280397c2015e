// Dead letters, straight from their topic: unreadable records too.

import { useState } from "preact/hooks";
import { ask, get } from "../api/client";
import type { DeadLetter, Intervention } from "../api/types";
import { useLoad } from "../state/load";
import { go, place, to } from "../state/place";
import { may } from "../state/session";
import { t } from "../text/text";
import { A, Badge, Bytes, Empty, Reload, Time } from "../ui/bits";
import { Confirm } from "../ui/dialog";
import { Filters, Pager } from "../ui/filters";
import { Panel } from "../ui/panel";
import { Head } from "../ui/shell";
import { Table } from "../ui/table";

export function DeadLetters() {
  const { query } = place.use();
  const load = useLoad(`dead letters ${query.toString()}`, (signal) =>
    get("/v1/dead-letters", { query: { partition: query.get("partition"), cursor: query.get("cursor"), limit: 50 }, signal }),
  );
  const [open, setOpen] = useState<DeadLetter | null>(null);
  return (
    <>
      <Head title={t.pages["dead-letters"]} under={t.deadLetter.what}>
        <Reload call={load.reload} />
        {may("resend") ? (
          <A page="replays" query={{ new: "dead_letters" }} class="button small">
            {t.bulk.replayAll}
          </A>
        ) : null}
      </Head>
      <Filters fields={[{ name: "partition", label: t.columns.partition }]} />
      <Panel title={t.list.title} load={load} lines={6}>
        {(page) => (
          <>
            {page.dead_letters.length === 0 ? (
              <Empty title={page.next_cursor === null ? t.deadLetter.none : t.list.notYet} />
            ) : (
              <Table
                caption={t.pages["dead-letters"]}
                rows={page.dead_letters}
                id={(row) => row.id}
                href={(row) => (row.delivery_id ? to("delivery", { id: row.delivery_id }) : null)}
                name={(row) => row.id}
                columns={[
                  { name: t.columns.time, cell: (row) => <Time at={row.written_at} /> },
                  { name: t.columns.reason, cell: (row) => <Badge tone="bad">{row.reason ?? t.deadLetter.unreadable}</Badge> },
                  { name: t.columns.eventType, cell: (row) => <span class="break">{row.event_type ?? "–"}</span> },
                  {
                    name: t.columns.subscription,
                    cell: (row) =>
                      row.subscription_id ? (
                        <A page="subscription" query={{ id: row.subscription_id }} class="above break">
                          {row.subscription_id}
                        </A>
                      ) : (
                        "–"
                      ),
                  },
                  { name: t.columns.tenant, cell: (row) => row.tenant ?? "–" },
                  { name: t.failing.lastResult, cell: (row) => <span class="break">{row.last_result ?? "–"}</span> },
                  { name: t.payload.size, cell: (row) => <Bytes of={row.body_bytes} />, right: true },
                  { name: t.columns.id, cell: (row) => <code>{row.id}</code> },
                ]}
                under={(row) => (
                  <span class="why">
                    <span class="break">{(row.reason !== null && Object.hasOwn(t.deadReasons, row.reason) ? t.deadReasons[row.reason as keyof typeof t.deadReasons].why : null) ?? row.detail ?? row.reason ?? "–"}</span>{" "}
                    {row.retryable && may("resend") ? (
                      <button type="button" class="link above" onClick={() => setOpen(row)}>
                        {t.actions.retry}
                      </button>
                    ) : row.retryable ? null : (
                      <span class="faint">{t.deadLetter.notRetryable}</span>
                    )}
                  </span>
                )}
              />
            )}
            <Pager end={t.pager.all} next={page.next_cursor} shown={page.dead_letters.length} />
          </>
        )}
      </Panel>
      {open ? (
        <Confirm
          title={t.actions.retry}
          label={t.actions.retry}
          close={() => setOpen(null)}
          act={async () => {
            const { value } = await ask<Intervention>("POST", "/v1/dead-letters/{id}/retry", { path: { id: open.id } });
            go(to("delivery", { id: value.delivery_id }));
          }}
        >
          <p>{t.delivery.retryWhat(open.subscription_id ?? "–")}</p>
        </Confirm>
      ) : null}
    </>
  );
}
