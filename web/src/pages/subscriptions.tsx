// The list of subscriptions, each with what it got in the last day.

import { get } from "../api/client";
import type { Series } from "../api/types";
import { countText, percentText } from "../format/numbers";
import { filtersOf } from "../state/filters";
import { stepTimes, values } from "../state/figures";
import { useLoad } from "../state/load";
import { APP, place, to } from "../state/place";
import { isOperator, may } from "../state/session";
import { language, t, word } from "../text/text";
import { A, Empty, Reload, StatusBadge, Words } from "../ui/bits";
import { Sparkline } from "../ui/chart";
import { Filters, Pager, type FilterField } from "../ui/filters";
import { Panel } from "../ui/panel";
import { Head } from "../ui/shell";
import { Table } from "../ui/table";

const SUBSCRIPTION_FILTERS = ["status", "event_type", "host", "tenant"] as const;

export function Subscriptions() {
  const { query } = place.use();
  const filters = filtersOf(query, SUBSCRIPTION_FILTERS);
  const load = useLoad(`subscriptions ${query.toString()}`, (signal) => get("/v1/subscriptions", { query: { ...filters, cursor: query.get("cursor"), limit: 100 }, signal }));
  const figures = useLoad(`subscriptions' figures ${filters["tenant"] ?? ""}`, (signal) => get("/v1/statistics", { query: { group: "subscription", step: "hour", limit: 200, tenant: filters["tenant"] }, signal }));
  const byId = new Map<string, Series>((figures.value?.series ?? []).map((each) => [String(each.group["subscription"]), each]));
  const times = figures.value ? stepTimes(figures.value) : [];
  const fields: FilterField[] = [
    { name: "status", label: t.columns.status, options: (["active", "paused", "pending", "disabled"] as const).map((each) => [each, word(t.statuses, each)]) },
    { name: "event_type", label: t.columns.eventType },
    { name: "host", label: t.columns.host },
  ];
  if (isOperator()) fields.push({ name: "tenant", label: t.columns.tenant });
  return (
    <>
      <Head title={APP === "portal" ? t.pages.endpoints : t.pages.subscriptions}>
        <Reload call={load.reload} />
        {may("write") ? (
          <A page="edit" class="button main">
            {t.actions.newSubscription}
          </A>
        ) : null}
      </Head>
      <Filters fields={fields} />
      <Panel title={t.list.title} load={load} lines={8}>
        {(page) => (
          <>
            {page.subscriptions.length === 0 ? (
              <Empty title={t.subscription.none}>{Object.keys(filters).length > 0 ? <p>{t.list.lessFilters}</p> : <p>{t.subscription.noneYet}</p>}</Empty>
            ) : (
              <Table
                caption={t.pages.subscriptions}
                rows={page.subscriptions.map((each) => ({ ...each, series: byId.get(each.id) }))}
                id={(row) => row.id}
                href={(row) => to("subscription", { id: row.id })}
                columns={[
                  { name: t.columns.id, cell: (row) => <Words of={row.id} /> },
                  { name: t.columns.status, cell: (row) => <StatusBadge status={row.status} /> },
                  { name: t.columns.url, cell: (row) => <Words of={row.url} />, wide: true },
                  { name: t.columns.eventTypes, cell: (row) => <span class="break">{row.event_types.slice(0, 4).join(", ") + (row.event_types.length > 4 ? "…" : "")}</span> },
                  { name: t.columns.tenant, cell: (row) => row.tenant ?? <span class="faint">–</span>, hidden: !isOperator() },
                  {
                    name: t.subscription.lastDay,
                    cell: (row) =>
                      row.series ? (
                        <Sparkline
                          label={t.subscription.attemptsOf(countText(row.series.totals.attempts, language), countText(row.series.totals.failed, language))}
                          values={values(row.series, times, (each) => each.attempts).map((each) => each ?? 0)}
                          bad={values(row.series, times, (each) => each.failed).map((each) => each ?? 0)}
                        />
                      ) : (
                        <span class="faint">–</span>
                      ),
                  },
                  {
                    name: t.subscription.failureRate,
                    right: true,
                    cell: (row) =>
                      row.series && row.series.totals.attempts > 0 ? (
                        <A page="deliveries" query={{ subscription: row.id, state: "failed" }} class={`above ${row.series.totals.failed > 0 ? "bad-text" : ""}`}>
                          {percentText(row.series.totals.failed / row.series.totals.attempts, language)}
                        </A>
                      ) : (
                        "–"
                      ),
                  },
                ]}
                under={(row) => (row.status === "active" ? null : <span class="why">{word(t.statusWhy, row.status)} {row.reason_text ?? (row.reason ? word(t.disabledReasons, row.reason) : "")}</span>)}
              />
            )}
            <Pager end={t.pager.all} next={page.next_cursor} shown={page.subscriptions.length} />
          </>
        )}
      </Panel>
    </>
  );
}
