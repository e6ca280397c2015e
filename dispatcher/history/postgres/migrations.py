"""The tables of the history in PostgreSQL, as numbered steps that are made once each.

Rules:

1. A step that has been released is never changed: what is different comes in the next one.
2. A step keeps what the version before it needs, so an old process works beside a new one while a deployment rolls. `oldest` names the
   first step whose code can work with what there is after this one.
3. All of them run in one transaction, under a lock that every starting process takes.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from dispatcher.history.base import BUCKETS, COUNTED
from dispatcher.history.rolling import DAYS, HOURS, MINUTES


class Migration(NamedTuple):
    """A step. `oldest`: see rule 2."""

    number: int
    oldest: int
    statements: tuple[str, ...]


_COUNTS: Final = ", ".join(f"{name} bigint NOT NULL" for name in (*COUNTED, *BUCKETS))

MIGRATIONS: Final = (
    Migration(
        1,
        1,
        (
            """CREATE TABLE history_positions (topic text NOT NULL, topic_id text NOT NULL, partition integer NOT NULL,
               next bigint NOT NULL, time_ms bigint NOT NULL, until bigint NOT NULL DEFAULT 0,
               PRIMARY KEY (topic, topic_id, partition))""",
            """CREATE TABLE history_spans (log_topic text NOT NULL, log_partition integer NOT NULL, topic text NOT NULL,
               partition integer NOT NULL, day integer NOT NULL, low bigint NOT NULL, high bigint NOT NULL,
               PRIMARY KEY (log_topic, log_partition, topic, partition, day))""",
            """CREATE TABLE history_gaps (topic text NOT NULL, topic_id text NOT NULL, partition integer NOT NULL, first bigint NOT NULL,
               next bigint NOT NULL, since_ms bigint NOT NULL, until_ms bigint NOT NULL, reason text NOT NULL)""",
            """CREATE TABLE history_versions (subscription_id text NOT NULL, since_ms bigint NOT NULL, tenant text, status text NOT NULL,
               document text NOT NULL, PRIMARY KEY (subscription_id, since_ms))""",
            """CREATE TABLE history_deliveries (day integer NOT NULL, delivery_id text COLLATE "C" NOT NULL, created_ms bigint NOT NULL,
               event_id text COLLATE "C" NOT NULL, event_type text COLLATE "C" NOT NULL, tenant text COLLATE "C",
               subscription_id text COLLATE "C" NOT NULL, topic text COLLATE "C" NOT NULL, partition integer NOT NULL,
               source_offset bigint NOT NULL, generation integer NOT NULL, state smallint NOT NULL, reason text, attempts integer NOT NULL,
               last_ms bigint NOT NULL, last_attempt integer NOT NULL, status integer, failure text, total_ms integer NOT NULL,
               due_ms bigint, host text, first text NOT NULL, PRIMARY KEY (delivery_id, day)) PARTITION BY RANGE (day)""",
            "CREATE INDEX ON history_deliveries (event_id)",
            "CREATE INDEX ON history_deliveries (subscription_id, created_ms, delivery_id)",
            "CREATE INDEX ON history_deliveries (tenant, created_ms, delivery_id)",
            "CREATE INDEX ON history_deliveries (created_ms, delivery_id)",
            "CREATE INDEX ON history_deliveries (subscription_id, created_ms, delivery_id) WHERE state < 4",
            "CREATE INDEX ON history_deliveries (tenant, created_ms, delivery_id) WHERE state < 4",
            "CREATE INDEX ON history_deliveries (created_ms, delivery_id) WHERE state < 4",
            """CREATE TABLE history_attempts (day integer NOT NULL, delivery_id text COLLATE "C" NOT NULL, generation integer NOT NULL,
               time_ms bigint NOT NULL, attempt integer NOT NULL, detail text NOT NULL,
               PRIMARY KEY (delivery_id, generation, time_ms, attempt, day)) PARTITION BY RANGE (day)""",
            """CREATE TABLE history_events (day integer NOT NULL, topic text COLLATE "C" NOT NULL, partition integer NOT NULL,
               source_offset bigint NOT NULL, time_ms bigint NOT NULL, event_id text COLLATE "C" NOT NULL, event_type text COLLATE "C" NOT NULL,
               tenant text COLLATE "C", sha256 text NOT NULL, size bigint NOT NULL) PARTITION BY RANGE (day)""",
            "CREATE INDEX ON history_events (event_id, time_ms)",
            "CREATE INDEX ON history_events (tenant, time_ms, event_id)",
            "CREATE INDEX ON history_events (time_ms, event_id)",
            """CREATE TABLE history_dead (day integer NOT NULL, dead_partition integer NOT NULL, dead_offset bigint NOT NULL,
               time_ms bigint NOT NULL, reason text NOT NULL, delivery_id text COLLATE "C", subscription_id text, event_id text, event_type text,
               tenant text, topic text NOT NULL, partition integer NOT NULL, source_offset bigint NOT NULL) PARTITION BY RANGE (day)""",
            "CREATE INDEX ON history_dead (delivery_id)",
            f"""CREATE TABLE history_counts (day integer NOT NULL, minute_ms bigint NOT NULL, tenant text COLLATE "C" NOT NULL,
               subscription_id text COLLATE "C" NOT NULL, event_type text COLLATE "C" NOT NULL, host text COLLATE "C" NOT NULL,
               status integer NOT NULL, {_COUNTS},
               PRIMARY KEY (minute_ms, tenant, subscription_id, event_type, host, status, day)) PARTITION BY RANGE (day)""",
        ),
    ),
    Migration(
        2, 1, ("CREATE INDEX history_versions_by_tenant ON history_versions (tenant, subscription_id)",)
    ),
    # A process of the version before counts into minutes only. It counts late for half an hour at least before that misses a sum.
    Migration(
        3,
        1,
        (
            *(
                f"""CREATE TABLE {table} (day integer NOT NULL, minute_ms bigint NOT NULL, tenant text COLLATE "C" NOT NULL,
               subscription_id text COLLATE "C" NOT NULL, event_type text COLLATE "C" NOT NULL, host text COLLATE "C" NOT NULL,
               status integer NOT NULL, {_COUNTS},
               PRIMARY KEY (minute_ms, tenant, subscription_id, event_type, host, status, day)) PARTITION BY RANGE (day)"""
                for table in (HOURS, DAYS)
            ),
            f"CREATE INDEX ON {HOURS} (subscription_id, minute_ms)",
            f"CREATE INDEX ON {HOURS} (tenant, minute_ms)",
            """CREATE TABLE history_rolled (one boolean PRIMARY KEY DEFAULT true CHECK (one), hours bigint NOT NULL,
               days bigint NOT NULL)""",
            "INSERT INTO history_rolled (hours, days) VALUES (0, 0)",
        ),
    ),
)

CURRENT: Final = MIGRATIONS[-1].number
"""The step that this code is for."""

BY_DAY: Final = ("history_deliveries", "history_attempts", "history_events", "history_dead")
"""Tables whose partitions are days, kept as long as rows are."""

COUNTS_BY_DAY: Final = (MINUTES, HOURS, DAYS)
"""Likewise, kept as long as counts are."""
