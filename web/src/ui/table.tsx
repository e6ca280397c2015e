// Tables whose rows are links: the first cell's link covers the row, so that it opens by click, middle click and Enter.

import type { ComponentChildren, Ref } from "preact";
import { Component } from "preact";
import { useLayoutEffect, useRef, useState } from "preact/hooks";
import { t } from "../text/text";

export interface Column<T> {
  name: string;
  cell: (row: T) => ComponentChildren;
  right?: boolean;
  wide?: boolean; // takes a line of its own on a narrow screen
  hidden?: boolean;
  spare?: boolean; // left out where there is little room for all
}

interface RowProps<T> {
  row: T;
  columns: Column<T>[];
  href: string | null;
  name: string | null;
  under: ComponentChildren;
  pick: ComponentChildren;
}

/** Drawn anew only where it is another row, or has other columns. */
export class Row<T> extends Component<RowProps<T>> {
  override shouldComponentUpdate(next: RowProps<T>): boolean {
    return next.row !== this.props.row || next.href !== this.props.href || next.pick !== this.props.pick || next.columns !== this.props.columns;
  }

  override render({ row, columns, href, name, under, pick }: RowProps<T>) {
    return (
      <>
        <tr class={`row${under ? " has-under" : ""}`}>
          {pick ? <td class="pick">{pick}</td> : null}
          {columns.map((column, at) => (
            <td key={column.name} data-label={column.name} class={`${column.right ? "right" : ""}${column.wide ? " wide" : ""}${column.spare ? " spare" : ""}`}>
              {at === 0 && href !== null ? (
                <a class="row-link" href={href}>
                  {column.cell(row)}
                  {name === null ? null : <span class="offscreen"> {name}</span>}
                </a>
              ) : (
                column.cell(row)
              )}
            </td>
          ))}
        </tr>
        {under ? (
          <tr class="under">
            <td colSpan={columns.length + (pick ? 1 : 0)}>{under}</td>
          </tr>
        ) : null}
      </>
    );
  }
}

interface TableProps<T> {
  rows: readonly T[];
  columns: Column<T>[];
  id: (row: T) => string;
  href?: (row: T) => string | null;
  name?: (row: T) => string; // of the row's link, for screen readers
  under?: (row: T) => ComponentChildren;
  pick?: (row: T) => ComponentChildren;
  pickAll?: ComponentChildren;
  caption: string;
}

const WHOLE = 100; // rows, at the most, of a table that is one
const PART = 10; // rows
const UNDER = 2.5; // rows' worth of work is one that has another beneath it
const HEIGHT = 2.25; // rem of a row,
const HEIGHT_UNDER = 1.5; // and of another beneath it

/** A row, its number from 0, and what is drawn beneath it. */
interface Drawn<T> {
  row: T;
  at: number;
  under: ComponentChildren;
}

export function Table<T>(props: TableProps<T>) {
  const columns = props.columns.filter((column) => !column.hidden);
  const inParts = props.rows.length > WHOLE;
  const { head, widths } = useWidths(inParts);
  const drawn = props.rows.map((row, at): Drawn<T> => ({ row, at, under: props.under?.(row) ?? null }));
  const [first, ...rest] = inParts ? parts(drawn) : [drawn];
  return (
    <div class="table">
      <table>
        <caption class="offscreen">{props.caption}</caption>
        <Head of={props} columns={columns} row={head} />
        <Body of={props} rows={first!} columns={columns} />
      </table>
      {rest.map((rows) => (
        <Part key={props.id(rows[0]!.row)} height={rows.reduce((sum, { under }) => sum + HEIGHT + (under ? HEIGHT_UNDER : 0), 0)}>
          <table class="part">
            <caption class="offscreen">{t.list.part(props.caption, rows[0]!.at + 1, rows.at(-1)!.at + 1)}</caption>
            <colgroup>
              {widths.map((width, column) => (
                <col key={column} style={{ width: `${width}px` }} />
              ))}
            </colgroup>
            <Head of={props} columns={columns} offscreen />
            <Body of={props} rows={rows} columns={columns} />
          </table>
        </Part>
      ))}
    </div>
  );
}

/** A browser lays out, searches and paints a table as a whole: of a thousand rows in one, each turn of the wheel took 70 ms. */
function parts<T>(rows: readonly Drawn<T>[]): Drawn<T>[][] {
  const found: Drawn<T>[][] = [];
  let room = 0;
  for (const row of rows) {
    const work = row.under ? UNDER : 1;
    if (room < work) {
      found.push([]);
      room = PART;
    }
    found.at(-1)!.push(row);
    room -= work;
  }
  return found;
}

/** Laid out and drawn only near the view, though it is there for a search in the page and for screen readers. */
function Part(props: { height: number; children: ComponentChildren }) {
  return (
    <div class="near" style={{ containIntrinsicBlockSize: `auto ${props.height}rem` }}>
      {props.children}
    </div>
  );
}

/** How wide the columns of the first part are, so that those of all others stand beneath them. */
function useWidths(wanted: boolean): { head: Ref<HTMLTableRowElement>; widths: readonly number[] } {
  const head = useRef<HTMLTableRowElement>(null);
  const [widths, setWidths] = useState<readonly number[]>([]);
  useLayoutEffect(() => {
    const row = head.current;
    if (!wanted || row === null) return;
    const measure = () => {
      // Those that are left out for want of room have none.
      const found = [...row.cells].map((cell) => cell.getBoundingClientRect().width).filter((width) => width > 0);
      setWidths((before) => (before.length === found.length && found.every((width, at) => Math.abs(width - before[at]!) < 0.5) ? before : found));
    };
    measure();
    const watch = new ResizeObserver(measure);
    for (const cell of row.cells) watch.observe(cell);
    return () => watch.disconnect();
  }, [wanted]);
  return { head, widths };
}

function Head<T>(props: { of: TableProps<T>; columns: Column<T>[]; row?: Ref<HTMLTableRowElement>; offscreen?: boolean }) {
  return (
    <thead class={props.offscreen ? "offscreen" : ""}>
      <tr ref={props.row ?? null}>
        {props.of.pick ? <th class="pick">{props.offscreen ? null : props.of.pickAll}</th> : null}
        {props.columns.map((column) => (
          <th key={column.name} scope="col" class={`${column.right ? "right" : ""}${column.spare ? " spare" : ""}`}>
            {column.name}
          </th>
        ))}
      </tr>
    </thead>
  );
}

function Body<T>(props: { of: TableProps<T>; rows: readonly Drawn<T>[]; columns: Column<T>[] }) {
  const { of, columns } = props;
  return (
    <tbody>
      {props.rows.map(({ row, under }) => (
        <Row key={of.id(row)} row={row} columns={columns} href={of.href?.(row) ?? null} name={of.name?.(row) ?? null} under={under} pick={of.pick?.(row) ?? null} />
      ))}
    </tbody>
  );
}
