// Why a delivery isn't delivered, what comes next, when, and the one thing to do. Pure: the texts are an argument.

import type { Delivery } from "../api/types";
import type { Texts } from "../text/en";

/** What a reader can do: an action of the page, or where to go. */
export type Remedy = "retry" | "wait" | "subscription" | "resume" | "enable" | "publish" | "operator";

export interface Verdict {
  why: string;
  next: string;
  when: number | null;
  todo: string;
  remedy: Remedy;
}

export interface ReasonText {
  why: string;
  next: string;
  todo: string;
  remedy: Remedy;
}

type Row = Pick<Delivery, "state" | "reason" | "status" | "failure" | "next_attempt_at" | "attempts" | "host">;

export function verdict(row: Row, texts: Texts): Verdict | null {
  if (row.state === "delivered") return null;
  const when = row.next_attempt_at ? Date.parse(row.next_attempt_at) : null;
  const answer = answerText(row, texts);
  if (row.state === "retrying") {
    const failure = failureOf(row, texts);
    return { why: answer, next: texts.verdict.retries(row.attempts + 1), when, todo: failure?.todo ?? texts.verdict.waits, remedy: failure?.remedy ?? "wait" };
  }
  const known = reasonOf(row, texts);
  if (known) {
    const because = row.state === "dead" && row.reason === "exhausted" && row.attempts > 0 ? `${known.why} ${texts.verdict.last(answer)}` : known.why;
    return { why: because, next: known.next, when, todo: known.todo, remedy: known.remedy };
  }
  if (row.state === "pending") return { ...texts.verdict.queued, when };
  return { why: row.reason ?? answer, next: texts.verdict.ended, when, todo: row.state === "dead" ? texts.verdict.retryWhenMended : texts.verdict.publishAgain, remedy: row.state === "dead" ? "retry" : "publish" };
}

function reasonOf(row: Row, texts: Texts): ReasonText | null {
  if (row.reason === null || row.reason === undefined) return null;
  const table: Readonly<Record<string, ReasonText>> = row.state === "pending" ? texts.parkReasons : row.state === "dead" ? texts.deadReasons : texts.droppedReasons;
  return Object.hasOwn(table, row.reason) ? table[row.reason]! : null;
}

function failureOf(row: Row, texts: Texts): { todo: string; remedy: Remedy } | null {
  if (row.failure) return Object.hasOwn(texts.failures, row.failure) ? texts.failures[row.failure as keyof Texts["failures"]] : null;
  if (row.status === null || row.status === undefined) return null;
  const advice: Readonly<Record<string, string | undefined>> = texts.statusAdvice;
  const exact = advice[String(row.status)];
  return { todo: exact ?? advice[`${Math.floor(row.status / 100)}xx`] ?? texts.verdict.waits, remedy: row.status === 401 || row.status === 403 || row.status === 404 ? "subscription" : "wait" };
}

/** Why there was no answer, in words; a failure that is newer than this page as the API names it. */
export function failureText(failure: string, texts: Texts): string {
  return Object.hasOwn(texts.failures, failure) ? texts.failures[failure as keyof Texts["failures"]].why : failure;
}

/** What came of the last attempt, in words. */
export function answerText(row: Pick<Delivery, "status" | "failure">, texts: Texts): string {
  if (row.failure) return failureText(row.failure, texts);
  if (row.status !== null && row.status !== undefined) return texts.verdict.answered(row.status);
  return texts.verdict.noAttempt;
}

/** Why deliveries don't arrive, and the one thing to do: a failure, a status or a reason, as the API's `cause` names them. */
export function causeText(cause: string, texts: Texts): { why: string; todo: string; remedy: Remedy } {
  if (Object.hasOwn(texts.failures, cause)) return texts.failures[cause as keyof Texts["failures"]];
  if (/^[1-5]\d\d$/.test(cause)) {
    const row = { failure: null, status: Number(cause) } as Row;
    const found = failureOf(row, texts)!;
    return { why: texts.verdict.answered(row.status!), ...found };
  }
  for (const table of [texts.parkReasons, texts.deadReasons] as Readonly<Record<string, ReasonText>>[]) if (Object.hasOwn(table, cause)) return table[cause]!;
  return { why: cause, todo: texts.verdict.waits, remedy: "wait" };
}
