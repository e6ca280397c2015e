// Who is failing now, on any replica.

import { get } from "../api/client";
import type { FailingAnswer, Waiting } from "../api/types";
import { countText, percentText } from "../format/numbers";
import { useLoad, type Loading } from "../state/load";
import { to } from "../state/place";
import { isOperator } from "../state/session";
import { language, t, word } from "../text/text";
import { A, Badge, Distance, Empty, Reload, Time, Words } from "../ui/bits";
import { Panel } from "../ui/panel";
import { Head } from "../ui/shell";
import { Table } from "../ui/table";

export function useFailing(wanted = true, tenant: string | null = null): Loading<FailingAnswer> {
  return useLoad(wanted ? `failing ${tenant ?? ""}` : null, (signal) => get("/v1/failing", { query: { tenant }, signal }));
}

export function Failing() {
  const load = useFailing();
  return (
    <>
      <Head title={t.pages.failing} under={t.failing.what}>
        <Reload call={load.reload} />
      </Head>
      <Panel title={t.list.title} load={load} lines={6}>
        {(answer) => <FailingTable answer={answer} />}
      </Panel>
    </>
  );
}

export function FailingTable(props: { answer: FailingAnswer; most?: number }) {
  const rows = props.answer.failing;
  if (rows.length === 0) return <Empty title={t.failing.none} />;
  const shown = props.most === undefined ? rows : rows.slice(0, props.most);
  return (
    <>
      <Table
        caption={t.pages.failing}
        rows={shown}
        id={(row) => row.subscription_id}
        href={(row) => to("subscription", { id: row.subscription_id })}
        columns={[
          { name: t.columns.subscription, cell: (row) => <Words of={row.subscription_id} /> },
          { name: t.columns.tenant, cell: (row) => row.tenant ?? <span class="faint">–</span>, hidden: !isOperator() },
          { name: t.failing.since, cell: (row) => (row.failing_since ? <Distance at={row.failing_since} /> : <span class="faint">{t.failing.onlyWaits}</span>) },
          { name: t.subscription.successRate, right: true, cell: (row) => (row.success_rate === null ? "–" : percentText(row.success_rate, language)) },
          { name: t.subscription.breaker, cell: (row) => <Badge tone={row.breaker === "open" ? "bad" : row.breaker === "half-open" ? "warn" : "calm"}>{word(t.breakers, row.breaker)}</Badge> },
          {
            name: t.failing.waiting,
            right: true,
            cell: (row) => (
              <A page="deliveries" query={{ subscription: row.subscription_id, state: "failed" }} class="above">
                <Waits waiting={row.waiting} />
              </A>
            ),
          },
          { name: t.failing.lastResult, cell: (row) => <span class="break">{row.last_result ?? "–"}</span>, wide: true },
        ]}
        under={(row) => (
          <span class="why">
            {row.next_attempt_at ? (
              <>
                {t.failing.next} <Distance at={row.next_attempt_at} coming />.{" "}
              </>
            ) : null}
            {row.oldest_waiting_since ? (
              <>
                {t.failing.oldest} <Time at={row.oldest_waiting_since} />.{" "}
              </>
            ) : null}
            <A page="deliveries" query={{ subscription: row.subscription_id, state: "failed" }} class="above">
              {t.subscription.showFailed}
            </A>
          </span>
        )}
      />
      {shown.length < props.answer.total ? props.most === undefined ? <p class="faint">{t.more(props.answer.total - shown.length)}</p> : <A page="failing">{t.more(props.answer.total - shown.length)}</A> : null}
      {props.answer.cut ? <p class="faint small">{t.failing.cut}</p> : null}
    </>
  );
}

/** What waits for it: queued, held and parked, and what the history says is to be tried again. */
function Waits(props: { waiting: Waiting }) {
  const { waiting } = props;
  // What is held is to be tried again, too: the history counts both together.
  const sum = waiting.queued + waiting.parked + (waiting.retrying ?? waiting.held);
  const text = countText(sum, language);
  return <>{waiting.parked_at_least || waiting.retrying_at_least || waiting.retrying === null ? t.atLeast(text) : text}</>;
}
