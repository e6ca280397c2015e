// A list that goes on: what comes is appended, as long as nobody reads further up. What is being read never moves.

import { useCallback, useEffect, useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import { countText } from "../format/numbers";
import { streamState } from "../state/live";
import { preferences } from "../state/preferences";
import { emptyTail, followed, interrupted, taken, waitingRows, type Tail as TailOf } from "../state/tail";
import { language, t } from "../text/text";
import { Button } from "./bits";
import { Row, type Column } from "./table";

export type Take<T> = (rows: readonly T[], missing?: number) => void;

const NEAR = 32; // pixels from the end that still count as the end

interface TailProps<T> {
  caption: string;
  columns: Column<T>[];
  href: (row: T) => string;
  name: (row: T) => string;
  source: (take: Take<T>) => void; // a hook that takes what comes
}

export function Tail<T>(props: TailProps<T>) {
  const box = useRef<HTMLDivElement>(null);
  const [tail, setTail] = useState<TailOf<T>>(emptyTail);
  const [following, setFollowing] = useState(true);
  const now = useRef(following);
  now.current = following;
  const follow = (wanted: boolean) => {
    if (now.current === wanted) return;
    now.current = wanted;
    setFollowing(wanted);
    if (wanted) setTail((old) => followed(old));
  };
  const take = useCallback<Take<T>>((rows, missing = 0) => {
    if (rows.length > 0 || missing !== 0) setTail((old) => taken(old, rows, now.current, missing));
  }, []);
  props.source(take);

  // A tab that was hidden, and a stream that was cut off, have missed something.
  const stream = streamState.use();
  const before = useRef(stream);
  useEffect(() => {
    if (stream !== "live" && before.current === "live") setTail((old) => interrupted(old, now.current));
    before.current = stream;
  }, [stream]);

  useLayoutEffect(() => {
    const element = box.current;
    if (element && following) element.scrollTop = element.scrollHeight;
  }, [tail, following]);

  const waiting = waitingRows(tail);
  const chosen = preferences.use();
  const columns = useMemo(() => props.columns.filter((column) => !column.hidden), [chosen]);
  const rows = tail.items.filter((each) => each.row !== null).length;
  return (
    <>
      <div class="actions tail-actions">
        <Button kind="small" aria-pressed={following} onClick={() => follow(!following)}>
          {following ? t.tail.pause : waiting > 0 ? t.tail.followNew(countText(waiting, language)) : t.tail.follow}
        </Button>
        <Button kind="small" onClick={() => setTail((old) => ({ ...emptyTail<T>(), next: old.next }))}>
          {t.tail.clear}
        </Button>
        <span class="faint small" role="status">
          {following ? t.tail.following : t.tail.paused}
        </span>
      </div>
      <div
        class="table tail"
        ref={box}
        tabIndex={0}
        role="region"
        aria-label={props.caption}
        onScroll={() => {
          const element = box.current!;
          follow(element.scrollHeight - element.scrollTop - element.clientHeight <= NEAR);
        }}
        onFocusIn={(event) => {
          // A row that somebody stands on by keyboard stays where it is.
          if (event.target !== box.current) follow(false);
        }}
      >
        {rows === 0 ? (
          <p class="faint tail-empty">{t.tail.nothing}</p>
        ) : (
          <table>
            <caption class="offscreen">{props.caption}</caption>
            <thead>
              <tr>
                {columns.map((column) => (
                  <th key={column.name} scope="col" class={`${column.right ? "right" : ""}${column.spare ? " spare" : ""}`}>
                    {column.name}
                  </th>
                ))}
              </tr>
            </thead>
            <tbody>
              {tail.items.map((item) =>
                item.row === null ? (
                  <tr key={item.n} class="hole">
                    <td colSpan={columns.length}>{item.missing > 0 ? t.tail.missing(countText(item.missing, language)) : t.tail.interrupted}</td>
                  </tr>
                ) : (
                  <Row key={item.n} row={item.row} columns={columns} href={props.href(item.row)} name={props.name(item.row)} under={null} pick={null} />
                ),
              )}
            </tbody>
          </table>
        )}
      </div>
    </>
  );
}

/** The way into a tail, and out of it. Also by the key `l`. */
export function TailSwitch(props: { on: boolean; href: string }) {
  return (
    <a class="button small" data-key="l" href={props.href} aria-current={props.on ? "true" : undefined}>
      {props.on ? t.tail.leave : t.tail.title}
    </a>
  );
}
