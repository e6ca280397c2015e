// Short names for what the API's document generates.

import type { components } from "./schema";

type Schemas = components["schemas"];

export type Delivery = Schemas["DeliveryReply"];
export type DeliveryState = Delivery["state"];
export type DeliveryPage = Schemas["DeliveryPage"];
export type DeliveryDetail = Schemas["DeliveryDetail"];
export type Gap = Schemas["GapReply"];
export type KnownEvent = Schemas["KnownEvent"];
export type EventWithDeliveries = Schemas["EventWithDeliveries"];
export type Subscription = Schemas["Subscription"];
export type SubscriptionDetail = Schemas["SubscriptionDetail"];
export type EventType = Schemas["EventType"];
export type Key = Schemas["Key"];
export type Ping = Schemas["Ping"];
export type Capability = Key["capabilities"][number];
export type Figures = Schemas["FiguresReply"];
export type Series = Schemas["StatisticsSeries"];
export type Statistics = Schemas["Statistics"];
export type FailingAnswer = Schemas["FailingSubscriptions"];
export type Issue = Schemas["Issue"];
export type IssuePage = Schemas["IssuePage"];
export type Waiting = Schemas["WaitingReply"];
export type Replica = Schemas["ReplicaReply"];
export type Intervention = Schemas["DeliveryCommanded"];
export type DeadLetter = Schemas["DeadLetterRecord"];
export type Plan = Schemas["ReplayPlan"];
export type Replay = Schemas["Replay"];
export type ReplayShown = Schemas["ReplayShown"];

/** A request as a local receiver got it (`dispatcher listen --inspect`). */
export interface ReceivedRequest {
  serial: number;
  method: string;
  url: string;
  size: number;
  content_type: string | null;
  answer: "answered" | "waiting" | "reset" | "left";
  signature: {
    verdict: "valid" | "missing" | "stale" | "wrong";
    missing: string[];
    off_seconds: number | null;
    schemes: string[];
    expected: string | null;
  };
}

/** A record of the attempt log (docs/attempts.md). A field that doesn't apply is absent. */
export interface Attempt {
  attempt: number;
  time_ms: number;
  decision: "delivered" | "retry" | "parked" | "dead" | "dropped" | "left_to_another";
  generation?: number;
  replay?: string;
  reason?: string;
  due_ms?: number;
  queue_ms?: number;
  total_ms?: number;
  first_byte_ms?: number;
  dns_ms?: number;
  connect_ms?: number;
  tls_ms?: number;
  status?: number;
  failure?: string;
  detail?: string;
  response?: string;
  response_base64?: string;
  response_bytes?: number;
  response_headers?: unknown;
  request_headers?: unknown;
  remote_address?: string;
  retry_after?: string;
  location?: string;
  replica?: string;
  host?: string;
  path?: string;
  triggered_by?: string;
  received?: ReceivedRequest; // of what a local receiver got
  [other: string]: unknown;
}
