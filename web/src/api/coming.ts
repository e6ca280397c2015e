// Shapes of answers, and one function for each that asks for it.

import { ask } from "./client";
import type { Gap } from "./types";

export interface Figures {
  attempts: number;
  delivered: number;
  failed: number;
  dead: number;
  dropped: number;
  parked: number;
  failures: Record<string, number>;
  mean_ms: number | null;
  p50_ms: number | null;
  p95_ms: number | null;
  p99_ms: number | null;
  late_ms: number | null;
}

export interface Series {
  group: Record<string, string | number | null>;
  points: (Figures & { time: string })[];
  totals: Figures;
}

export interface Statistics {
  as_of: string | null;
  gaps: Gap[];
  since: string;
  until: string;
  step: "minute" | "hour" | "day";
  series: Series[];
  totals: Figures;
  cut: boolean;
}

export const statistics = async (query: Record<string, string | number | null | undefined>, signal: AbortSignal): Promise<Statistics> => (await ask<Statistics>("GET", "/v1/statistics", { query, signal })).value;

export interface Waiting {
  queued: number;
  in_flight: number;
  held: number;
  parked: number;
  parked_at_least: boolean;
  retrying: number | null;
  retrying_at_least: boolean;
}

export interface FailingSubscription {
  subscription_id: string;
  tenant: string | null;
  host: string;
  status: string;
  reason: string | null;
  failing_since: string | null;
  success_rate: number | null;
  last_result: string | null;
  last_result_at: string | null;
  breaker: string;
  waiting: Waiting;
  oldest_waiting_since: string | null;
  next_attempt_at: string | null;
  replicas: string[];
}

export interface FailingAnswer {
  failing: FailingSubscription[];
  total: number;
  cut: boolean;
  replicas: string[];
}

export const failing = async (query: Record<string, string | number | null | undefined>, signal: AbortSignal): Promise<FailingAnswer> => (await ask<FailingAnswer>("GET", "/v1/failing", { query, signal })).value;

export interface Replica {
  replica: string;
  version: string;
  roles: string[];
  started_at: string | null;
  reported_at: string | null;
  ready: boolean;
  problems: string[];
  warnings: string[];
  partitions: Record<string, number[]>;
  lag: Record<string, number>;
  queued: number;
  in_flight: number;
  held: number;
  parked: Record<string, number>;
  lanes: number;
  breakers_open: Record<string, number>;
  subscriptions_in_trouble: number;
  history: { as_of: string | null; behind_records: number; partitions: number } | null;
}

export interface Cluster {
  replicas: Replica[];
}

export const cluster = async (signal: AbortSignal): Promise<Cluster> => (await ask<Cluster>("GET", "/v1/cluster", { signal })).value;

export interface Explanation {
  subscription_id: string;
  outcome: string;
  sentence: string;
  delivery_id: string | null;
}

export interface ExplainedEvent {
  id: string;
  type: string;
  tenant: string | null;
  published_at: string | null;
  source: { topic: string; partition: number; offset: number };
  explanations: Explanation[];
  cut: boolean;
}

export interface ExplainAnswer {
  as_of: string | null;
  gaps: Gap[];
  events: ExplainedEvent[];
}

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
