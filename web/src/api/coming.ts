// What the installation as a whole says, and what is sent again.

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

export type Intervention = Schemas["DeliveryCommanded"];
export type DeadLetter = Schemas["DeadLetterRecord"];
export type Plan = Schemas["ReplayPlan"];
export type Replay = Schemas["Replay"];
export type ReplayShown = Schemas["ReplayShown"];
