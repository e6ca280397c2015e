// Tables whose rows are links: the first cell's link covers the row, so that it opens by click, middle click and Enter.

import type { ComponentChildren } from "preact";
import { Component } from "preact";

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

export function Table<T>(props: {
  rows: readonly T[];
  columns: Column<T>[];
  id: (row: T) => string;
  href?: (row: T) => string | null;
  name?: (row: T) => string; // of the row's link, for screen readers
  under?: (row: T) => ComponentChildren;
  pick?: (row: T) => ComponentChildren;
  pickAll?: ComponentChildren;
  caption: string;
}) {
  const columns = props.columns.filter((column) => !column.hidden);
  return (
    <div class="table">
      <table>
        <caption class="offscreen">{props.caption}</caption>
        <thead>
          <tr>
            {props.pick ? <th class="pick">{props.pickAll}</th> : null}
            {columns.map((column) => (
              <th key={column.name} scope="col" class={`${column.right ? "right" : ""}${column.spare ? " spare" : ""}`}>
                {column.name}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {props.rows.map((row) => (
            <Row key={props.id(row)} row={row} columns={columns} href={props.href?.(row) ?? null} name={props.name?.(row) ?? null} under={props.under?.(row) ?? null} pick={props.pick?.(row) ?? null} />
          ))}
        </tbody>
      </table>
    </div>
  );
}
