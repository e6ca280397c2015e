// Shapes of answers, and one function for each that asks for it.

import { get, type Query } from "./client";
import type { components } from "./schema";

type Schemas = components["schemas"];

export type Figures = Schemas["FiguresReply"];
export type Series = Schemas["StatisticsSeries"];
export type Statistics = Schemas["Statistics"];
export type FailingAnswer = Schemas["FailingSubscriptions"];
export type Waiting = Schemas["WaitingReply"];
export type Replica = Schemas["ReplicaReply"];

export const statistics = (query: Query, signal: AbortSignal): Promise<Statistics> => get("/v1/statistics", { query, signal });
export const failing = (signal: AbortSignal): Promise<FailingAnswer> => get("/v1/failing", { signal });
export const cluster = (signal: AbortSignal): Promise<Schemas["Cluster"]> => get("/v1/cluster", { signal });

export interface Intervention {
  id: string;
  action: "retry" | "cancel" | "deliver";
  delivery_id: string;
  subscription_id: string;
  event_id: string;
  event_type: string;
  tenant: string | null;
  generation: number;
  requested_at: string;
  requested_by: string;
}

export interface DeadLetter {
  id: string;
  partition: number;
  offset: number | string;
  written_at: string;
  reason: string;
  detail: string | null;
  retryable: boolean;
  delivery_id: string | null;
  subscription_id: string | null;
  event_id: string | null;
  event_type: string | null;
  tenant: string | null;
  attempts: number | null;
  generation: number | null;
  last_result: string | null;
  body_bytes: number;
}

export interface Plan {
  source: string;
  records: number;
  deliveries: number;
  exact: boolean;
  by_type: Record<string, number>;
  not_active: number;
  since: string | null;
  until: string;
  first_at: string | null;
  last_at: string | null;
  seconds: number | null;
  warnings: string[];
}

export interface Replay {
  id: string;
  state: "planned" | "running" | "paused" | "done" | "cancelled" | "failed";
  detail: string | null;
  source: string;
  subscription: string | null;
  tenant: string | null;
  since: string | null;
  until: string | null;
  event_types: string[] | null;
  states: string[] | null;
  status_codes: string[] | null;
  reasons: string[] | null;
  rate: string | null;
  created_at: string;
  created_by: string;
  started_at: string | null;
  ended_at: string | null;
  updated_at: string;
  runner: string | null;
  progress: { fraction: number | null; looked: number; written: number; sent: number; behind: number; skipped: Record<string, number> };
  estimate: { per_second: number | null; seconds_left: number | null; ends_at: string | null };
}
