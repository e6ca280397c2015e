// The list of events.

import { get } from "../api/client";
import type { KnownEvent } from "../api/types";
import { EVENT_FILTERS, filtersOf, listQuery } from "../state/filters";
import { useLoad } from "../state/load";
import { place, to } from "../state/place";
import { isOperator } from "../state/session";
import { t } from "../text/text";
import { Bytes, Empty, Reload, Time, Words } from "../ui/bits";
import { Export } from "../ui/export";
import { Filters, Pager, type FilterField } from "../ui/filters";
import { Knowledge, Panel } from "../ui/panel";
import { RangePicker } from "../ui/range";
import { Head } from "../ui/shell";
import { Table } from "../ui/table";

export function Events() {
  const { query } = place.use();
  const load = useLoad(`events ${query.toString()}`, (signal) => get("/v1/events", { query: listQuery(query, EVENT_FILTERS, Date.now()), signal }));
  const fields: FilterField[] = [{ name: "type", label: t.columns.eventType, help: t.filters.typeHelp }];
  if (isOperator()) fields.push({ name: "tenant", label: t.columns.tenant });
  return (
    <>
      <Head title={t.pages.events}>
        <RangePicker />
        <Reload call={load.reload} />
        <Export path="/v1/events" name="events" query={() => listQuery(query, EVENT_FILTERS, Date.now())} />
      </Head>
      <Filters fields={fields} />
      <Panel title={t.list.title} load={load} lines={10}>
        {(page) => (
          <>
            <Knowledge as_of={page.as_of} gaps={page.gaps} at={load.at} />
            {page.events.length === 0 ? (
              <Empty title={page.next_cursor === null ? t.list.noEvents : t.list.notYet}>{page.next_cursor === null ? <p>{Object.keys(filtersOf(query, EVENT_FILTERS)).length > 0 ? t.list.lessFilters : t.list.otherTime}</p> : null}</Empty>
            ) : (
              <EventTable rows={page.events} />
            )}
            <Pager next={page.next_cursor} shown={page.events.length} />
          </>
        )}
      </Panel>
    </>
  );
}

export function EventTable(props: { rows: readonly KnownEvent[] }) {
  return (
    <Table
      caption={t.pages.events}
      rows={props.rows}
      id={(row) => `${row.id} ${row.source.topic} ${row.source.partition} ${row.source.offset}`}
      href={(row) => to("event", { id: row.id })}
      name={(row) => row.id}
      columns={[
        { name: t.columns.time, cell: (row) => <Time at={row.published_at} /> },
        { name: t.columns.eventType, cell: (row) => <Words of={row.type} /> },
        { name: t.columns.id, cell: (row) => <code><Words of={row.id} /></code> },
        { name: t.columns.tenant, cell: (row) => row.tenant ?? <span class="faint">–</span>, hidden: !isOperator() },
        { name: t.payload.size, cell: (row) => (row.size === null ? "–" : <Bytes of={row.size} />), right: true },
        {
          name: t.columns.source,
          cell: (row) => (
            <code class="faint">
              {row.source.topic}/{row.source.partition}/{String(row.source.offset)}
            </code>
          ),
        },
      ]}
    />
  );
}
