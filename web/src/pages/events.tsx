// The list of events.

import { useEffect, useState } from "preact/hooks";
import { get, Problem } from "../api/client";
import type { KnownEvent } from "../api/types";
import { instant, utcText } from "../format/time";
import { EVENT_FILTERS, filtersOf, listQuery } from "../state/filters";
import { useLoad } from "../state/load";
import { changed, place, to } from "../state/place";
import { isOperator } from "../state/session";
import { t } from "../text/text";
import { Bytes, Empty, Reload, Time, Words } from "../ui/bits";
import { Export } from "../ui/export";
import { Filters, Pager, type FilterField } from "../ui/filters";
import { asProblem } from "../ui/dialog";
import { Knowledge, Panel, ProblemNote, Section } from "../ui/panel";
import { RangePicker } from "../ui/range";
import { Head } from "../ui/shell";
import { Table, type Column } from "../ui/table";
import { Tail, TailSwitch, type Take } from "../ui/tail";

export function Events() {
  const { query } = place.use();
  const tail = query.has("tail");
  const load = useLoad(tail ? null : `events ${query.toString()}`, (signal) => get("/v1/events", { query: listQuery(query, EVENT_FILTERS, Date.now()), signal }));
  const fields: FilterField[] = [{ name: "type", label: t.columns.eventType, help: t.filters.typeHelp }];
  if (isOperator()) fields.push({ name: "tenant", label: t.columns.tenant });
  return (
    <>
      <Head title={t.pages.events}>
        <TailSwitch on={tail} href={changed(tail ? { tail: null } : { tail: 1, cursor: null, until: null })} />
        {tail ? null : <RangePicker />}
        {tail ? null : <Reload call={load.reload} />}
        <Export path="/v1/events" name="events" query={() => listQuery(query, EVENT_FILTERS, Date.now())} />
      </Head>
      <Filters fields={fields} />
      {tail ? <EventsTail key={JSON.stringify(filtersOf(query, EVENT_FILTERS))} filters={filtersOf(query, EVENT_FILTERS)} /> : <Panel title={t.list.title} load={load} lines={10}>
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
      </Panel>}
    </>
  );
}

const LOOK = 2000; // milliseconds between two looks at what has come
const OVERLAP = 10_000; // clocks of producers differ
const PAGE = 200;

const keyOf = (row: KnownEvent) => `${row.id} ${row.source.topic} ${row.source.partition} ${String(row.source.offset)}`;

/** Takes what is published from now on. A hidden tab doesn't ask. */
function useNewEvents(take: Take<KnownEvent>, filters: Record<string, string>, tell: (problem: Problem | null) => void): void {
  useEffect(() => {
    const abort = new AbortController();
    let since = Date.now() - OVERLAP;
    let seen: Set<string> | null = null;
    let timer: ReturnType<typeof setTimeout>;
    const look = async () => {
      if (document.visibilityState === "visible") {
        try {
          const page = await get("/v1/events", { query: { ...filters, since: utcText(since), limit: PAGE }, signal: abort.signal });
          const fresh = page.events.filter((row) => seen !== null && !seen.has(keyOf(row)));
          // The page is full of what nobody has seen: there is more before it.
          take(fresh.reverse(), page.next_cursor !== null && fresh.length === page.events.length && fresh.length > 0 ? -1 : 0);
          seen = new Set(page.events.map(keyOf));
          since = Math.max(since, (instant(page.as_of) ?? 0) - OVERLAP);
          tell(null);
        } catch (error) {
          if (abort.signal.aborted) return;
          tell(asProblem(error));
        }
      }
      timer = setTimeout(() => void look(), LOOK);
    };
    void look();
    return () => {
      abort.abort();
      clearTimeout(timer);
    };
  }, []);
}

function EventsTail(props: { filters: Record<string, string> }) {
  const [problem, setProblem] = useState<Problem | null>(null);
  return (
    <Section title={t.tail.title}>
      {problem ? <ProblemNote problem={problem} /> : null}
      <Tail<KnownEvent> caption={t.tail.title} columns={eventColumns()} href={(row) => to("event", { id: row.id })} name={(row) => row.id} source={(take) => useNewEvents(take, props.filters, setProblem)} />
    </Section>
  );
}

export function EventTable(props: { rows: readonly KnownEvent[] }) {
  return (
    <Table
      caption={t.pages.events}
      rows={props.rows}
      id={keyOf}
      href={(row) => to("event", { id: row.id })}
      name={(row) => row.id}
      columns={eventColumns()}
    />
  );
}

function eventColumns(): Column<KnownEvent>[] {
  return [
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
  ];
}
