// A part of a page that loads and fails by itself.

import { Component, type ComponentChildren } from "preact";
import { Problem } from "../api/client";
import type { Gap } from "../api/types";
import { countText } from "../format/numbers";
import { instant, timeText } from "../format/time";
import type { Loading } from "../state/load";
import { zoneName } from "../state/preferences";
import { language, span, t, word } from "../text/text";
import { Button, Note, Time } from "./bits";

/** What a problem says, and what to do. */
export function problemTexts(problem: Problem): { title: string; detail: string } {
  const own = Object.hasOwn(t.problems, problem.kind) ? t.problems[problem.kind as keyof typeof t.problems] : null;
  return { title: own?.title ?? (problem.title || t.problems.unreachable.title), detail: [own?.todo, problem.detail].filter(Boolean).join(" ") };
}

export function ProblemNote(props: { problem: Problem; again?: (() => void) | undefined }) {
  const { title, detail } = problemTexts(props.problem);
  return (
    <div class="note bad" role="alert">
      <div>
        <strong>{title}</strong> {detail}
        {props.problem.errors.length > 0 ? (
          <ul>
            {props.problem.errors.map((error) => (
              <li key={error.field}>
                {error.field ? <code>{error.field}</code> : null} {error.message}
              </li>
            ))}
          </ul>
        ) : null}
        {props.problem.requestId ? <span class="faint small"> {t.requestId(props.problem.requestId)}</span> : null}
      </div>
      {props.again ? (
        <div class="actions">
          <Button kind="small" onClick={props.again}>
            {t.again}
          </Button>
        </div>
      ) : null}
    </div>
  );
}

interface FenceProps {
  children: ComponentChildren;
  turn?: number; // another one gives what is drawn a new chance
}

/** Keeps an error in drawing one panel out of the others. */
export class Fence extends Component<FenceProps, { error: Error | null }> {
  override state = { error: null as Error | null };

  override componentDidCatch(error: Error): void {
    this.setState({ error });
  }

  override componentDidUpdate(before: FenceProps): void {
    if (before.turn !== this.props.turn && this.state.error !== null) this.setState({ error: null });
  }

  override render() {
    const { error } = this.state;
    if (error === null) return this.props.children;
    return <ProblemNote problem={new Problem(0, "broken", "", error.message)} again={() => this.setState({ error: null })} />;
  }
}

interface PanelProps<T> {
  title: string;
  load: Loading<T>;
  children: (value: T) => ComponentChildren;
  actions?: ComponentChildren;
  lines?: number; // of the skeleton
}

export function Panel<T>(props: PanelProps<T>) {
  const { load } = props;
  return (
    <section class="panel" aria-busy={load.busy}>
      <header>
        <h2>{props.title}</h2>
        <div class="actions">
          {load.busy && load.value !== undefined ? <span class="spinner" role="status" aria-label={t.loading} /> : null}
          {props.actions}
        </div>
      </header>
      {load.problem ? <ProblemNote problem={load.problem} again={load.reload} /> : null}
      {load.value !== undefined ? <Fence turn={load.at}>{props.children(load.value)}</Fence> : load.problem ? null : <Skeleton lines={props.lines ?? 3} />}
    </section>
  );
}

/** A part without a request of its own. */
export function Section(props: { title: string; children: ComponentChildren }) {
  return (
    <section class="panel">
      <header>
        <h2>{props.title}</h2>
      </header>
      <Fence>{props.children}</Fence>
    </section>
  );
}

export function Skeleton(props: { lines: number }) {
  return (
    <div class="skeleton" role="status" aria-label={t.loading}>
      {Array.from({ length: props.lines }, (_, i) => (
        <div key={i} />
      ))}
    </div>
  );
}

const LATE = 60_000; // milliseconds behind which the history says so

/** As of when an answer is, how far that is behind, and what it doesn't know. */
export function Knowledge(props: { as_of: string | null | undefined; gaps?: Gap[] | undefined; at: number }) {
  const asOf = instant(props.as_of);
  const gaps = props.gaps ?? [];
  const late = asOf === null ? 0 : props.at - asOf;
  return (
    <>
      {asOf === null ? <Note tone="warn">{t.history.nothing}</Note> : late > LATE ? <Note tone="warn">{t.history.behind(span(late), timeText(asOf, zoneName()))}</Note> : null}
      {gaps.length > 0 ? (
        <Note tone="warn" title={t.history.gaps(gaps.length)}>
          <ul>
            {gaps.slice(0, 5).map((gap) => (
              <li key={`${gap.topic}${gap.partition}${gap.since}`}>
                {gap.topic}/{gap.partition}: <Time at={gap.since} /> – <Time at={gap.until} />, {t.history.atMost(countText(gap.records, language))} ({word(t.history.reasons, gap.reason)})
              </li>
            ))}
            {gaps.length > 5 ? <li>{t.more(gaps.length - 5)}</li> : null}
          </ul>
        </Note>
      ) : null}
      {asOf !== null ? (
        <p class="faint small as-of">
          {t.history.asOf} <Time at={asOf} />
        </p>
      ) : null}
    </>
  );
}
