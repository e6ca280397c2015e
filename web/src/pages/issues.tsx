// What keeps deliveries from arriving, by subscription and cause: a hundred thousand rows are a few lines.

import { useState } from "preact/hooks";
import { ask, get, type Query } from "../api/client";
import type { Issue, IssuePage } from "../api/types";
import { countText } from "../format/numbers";
import { readTime, timeText, utcText } from "../format/time";
import { filtersOf, ISSUE_FILTERS, rangeOf, rangeQuery, WEEK } from "../state/filters";
import { useLoad } from "../state/load";
import { changed, place, to } from "../state/place";
import { zoneName } from "../state/preferences";
import { isOperator, may } from "../state/session";
import { causeText } from "../state/verdict";
import { heading, language, span, t, word } from "../text/text";
import { A, Badge, Button, Copy, Distance, Empty, Note, Reload, Time, Words, type Tone } from "../ui/bits";
import { asProblem, Confirm } from "../ui/dialog";
import { Filters, type FilterField } from "../ui/filters";
import { Input } from "../ui/form";
import { Knowledge, Panel, problemTexts } from "../ui/panel";
import { RangePicker } from "../ui/range";
import { Head } from "../ui/shell";
import { Table } from "../ui/table";

const STATES = ["open", "acknowledged", "ignored", "resolved"] as const;
const TONES: Record<Issue["state"], Tone> = { open: "bad", acknowledged: "warn", ignored: "calm", resolved: "good" };
const AT_MOST = 100;

export function Issues() {
  const { query } = place.use();
  const [says, setSays] = useState<{ tone: Tone; text: string } | null>(null);
  const load = useLoad(`issues ${query.toString()}`, (signal) => get("/v1/issues", { query: asked(query), signal }));
  const fields: FilterField[] = [
    { name: "state", label: t.columns.state, options: STATES.map((state): [string, string] => [state, t.issues.states[state]]) },
    { name: "subscription", label: t.columns.subscription },
  ];
  if (isOperator()) fields.push({ name: "tenant", label: t.columns.tenant });
  const done = (tone: Tone, text: string) => {
    setSays({ tone, text });
    load.reload();
  };
  return (
    <>
      <Head title={t.pages.issues} under={t.issues.what}>
        <RangePicker length={WEEK} />
        <Reload call={load.reload} />
        <Copy label={t.copyLink} text={() => new URL(changed(frozen(query)), document.baseURI).href} />
      </Head>
      <Filters fields={fields} />
      {says ? (
        <Note tone={says.tone} live>
          {says.text}
        </Note>
      ) : null}
      <Panel title={t.list.title} load={load} lines={6}>
        {(page) => (
          <>
            <Knowledge as_of={page.as_of} gaps={page.gaps} at={load.at} />
            {page.issues.length === 0 ? (
              <Empty title={t.issues.none}>
                <p>{Object.keys(filtersOf(query, ISSUE_FILTERS)).length > 0 ? t.list.lessFilters : t.issues.noneWhat}</p>
              </Empty>
            ) : (
              <IssueTable page={page} query={query} done={done} />
            )}
            {page.at_least ? <p class="faint small">{t.issues.atLeast}</p> : null}
            {page.cut ? <p class="faint small">{t.issues.cut}</p> : null}
          </>
        )}
      </Panel>
    </>
  );
}

function asked(query: URLSearchParams): Query {
  return { ...filtersOf(query, ISSUE_FILTERS), ...rangeQuery(rangeOf(query, Date.now(), WEEK)), limit: AT_MOST };
}

function frozen(query: URLSearchParams): { since: string; until: string } {
  const range = rangeOf(query, Date.now(), WEEK);
  return { since: utcText(range.since), until: utcText(range.until ?? Date.now()) };
}

function IssueTable(props: { page: IssuePage; query: URLSearchParams; done: (tone: Tone, text: string) => void }) {
  const [ignoring, setIgnoring] = useState<Issue | null>(null);
  const range = rangeQuery(rangeOf(props.query, Date.now(), WEEK));
  const rows = (issue: Issue, state?: string) => to("deliveries", { subscription: issue.subscription_id, cause: issue.cause, state, ...range });
  const count = (n: number) => (props.page.at_least ? t.atLeast(countText(n, language)) : countText(n, language));
  const mark = async (issue: Issue, verb: "acknowledge" | "reopen") => {
    try {
      const { value } = await ask<Issue>("POST", `/v1/issues/{id}/${verb}`, { path: { id: issue.id } });
      props.done("good", t.issues.done(issue.id, t.issues.states[value.state]));
    } catch (error) {
      const said = problemTexts(asProblem(error));
      props.done("bad", `${said.title} ${said.detail}`);
    }
  };
  const part = (issue: Issue, n: number, state: string) =>
    n === 0 ? (
      <span class="faint">0</span>
    ) : (
      <a class="above" href={rows(issue, state)}>
        {count(n)}
      </a>
    );
  return (
    <>
      <Table
        caption={t.pages.issues}
        rows={props.page.issues}
        id={(issue) => issue.id}
        href={(issue) => rows(issue)}
        name={(issue) => `${issue.cause}, ${t.issues.states[issue.state]}`}
        columns={[
          { name: t.columns.subscription, cell: (issue) => <Words of={issue.subscription_id} /> },
          { name: t.issues.cause, cell: (issue) => <code><Words of={issue.cause} /></code> },
          { name: t.columns.state, cell: (issue) => <Badge tone={TONES[issue.state]}>{word(t.issues.states, issue.state)}</Badge> },
          { name: t.columns.tenant, cell: (issue) => issue.tenant ?? <span class="faint">–</span>, hidden: !isOperator() },
          { name: t.columns.host, cell: (issue) => <Words of={issue.host} />, spare: true },
          { name: t.pages.deliveries, cell: (issue) => count(issue.deliveries), right: true },
          { name: heading(t.states.pending), cell: (issue) => part(issue, issue.pending, "pending"), right: true },
          { name: heading(t.states.retrying), cell: (issue) => part(issue, issue.retrying, "retrying"), right: true },
          { name: heading(t.states.dead), cell: (issue) => part(issue, issue.dead, "dead"), right: true },
          { name: t.issues.last, cell: (issue) => <Distance at={issue.last_failure_at} /> },
        ]}
        under={(issue) => (
          <span class="why">
            <Why issue={issue} />
            <span class="actions above">
              {may("write") && issue.state === "open" ? (
                <Button kind="small" onClick={() => void mark(issue, "acknowledge")}>
                  {t.issues.acknowledge}
                </Button>
              ) : null}
              {may("write") && (issue.state === "open" || issue.state === "acknowledged") ? (
                <Button kind="small" onClick={() => setIgnoring(issue)}>
                  {t.issues.ignore}
                </Button>
              ) : null}
              {may("write") && issue.mark ? (
                <Button kind="small" onClick={() => void mark(issue, "reopen")}>
                  {t.issues.reopen}
                </Button>
              ) : null}
              {may("resend") && issue.dead > 0 ? (
                <a class="button small" href={again(issue, frozen(props.query))}>
                  {t.issues.again}
                </a>
              ) : null}
            </span>
          </span>
        )}
      />
      {ignoring ? (
        <Ignore
          issue={ignoring}
          close={() => setIgnoring(null)}
          done={(until) => props.done("good", t.issues.ignored(ignoring.id, until))}
        />
      ) : null}
    </>
  );
}

/** Why, what comes next, what somebody said about it, and the one thing to do. */
function Why(props: { issue: Issue }) {
  const { issue } = props;
  const known = causeText(issue.cause, t);
  // Of what was given up nothing is tried again by itself.
  const found = issue.dead === issue.deliveries && known.remedy === "wait" ? { ...known, todo: t.verdict.retryWhenMended } : known;
  return (
    <span class="block">
      <span class="break">{found.why}</span>{" "}
      {issue.next_attempt_at ? (
        <span class="faint">
          {t.failing.next} <Distance at={issue.next_attempt_at} coming />.{" "}
        </span>
      ) : null}
      {issue.last_success_at ? (
        <span class="faint">
          {t.issues.success} <Time at={issue.last_success_at} />.{" "}
        </span>
      ) : null}
      <span class="faint">
        {t.issues.since} <Time at={issue.first_at} />.
      </span>{" "}
      {issue.mark ? (
        <span class="faint">
          {t.issues.by[issue.mark.kind](issue.mark.by)} <Time at={issue.mark.at} />
          {issue.mark.until ? (
            <>
              , {t.issues.until} <Time at={issue.mark.until} />
            </>
          ) : null}
          .{" "}
        </span>
      ) : null}
      {issue.state === "resolved" ? null : found.remedy === "subscription" || found.remedy === "resume" || found.remedy === "enable" ? (
        <A page="subscription" query={{ id: issue.subscription_id }} class="above" title={found.todo}>
          {found.todo}
        </A>
      ) : (
        <span class="faint">{found.todo}</span>
      )}
    </span>
  );
}

/** What was given up of it, as a replay: its filter and its time are frozen at the click. */
function again(issue: Issue, range: { since: string; until: string }): string {
  const status = /^\d+$/.test(issue.cause);
  return to("replays", {
    new: "deliveries",
    subscription: issue.subscription_id,
    tenant: isOperator() ? issue.tenant : null,
    states: "dead",
    status_codes: status ? issue.cause : null,
    reasons: status ? null : issue.cause,
    ...range,
  });
}

const LENGTHS = [3_600_000, 28_800_000, 86_400_000, WEEK];

function Ignore(props: { issue: Issue; close: () => void; done: (until: string) => void }) {
  const zone = zoneName();
  const [until, setUntil] = useState(() => timeText(Date.now() + LENGTHS[2]!, zone));
  const at = readTime(until, zone);
  return (
    <Confirm
      title={t.issues.ignoreTitle(props.issue.id)}
      label={t.issues.ignore.replace(/\s*…$/, "")}
      close={props.close}
      act={async () => {
        if (Number.isNaN(at)) throw new Error(t.range.noTime);
        await ask<Issue>("POST", "/v1/issues/{id}/ignore", { path: { id: props.issue.id }, body: { until: utcText(at) } });
        props.done(timeText(at, zone));
      }}
    >
      <p>{t.issues.ignoreWhat}</p>
      <div class="presets">
        {LENGTHS.map((length) => (
          <Button key={length} kind="small" onClick={() => setUntil(timeText(Date.now() + length, zone))}>
            {span(length)}
          </Button>
        ))}
      </div>
      <Input label={t.range.until} value={until} set={setUntil} wrong={Number.isNaN(at) ? t.range.noTime : undefined} help={t.range.zone(zone)} />
    </Confirm>
  );
}
