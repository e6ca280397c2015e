"""The history port: what a store keeps of the logs, and what may be asked of it.

Two implementations keep it, SQLite (`sqlite/`) and PostgreSQL (`postgres/`), and one conformance suite
(`tests/history/conformance`) holds both to it.

Rules, for every implementation:

1. The logs are the truth. A store holds metadata and where things stand in the logs, never an event's body. It may be thrown away.
2. `apply` is one transaction as far as anybody can tell: rows, counts and the positions behind them are there together, or none of
   them. After a crash anywhere, applying again from `positions()` loses nothing and doubles nothing.
3. A position advances by compare-and-set: whoever lost a partition meanwhile gets `PositionMoved`, and nothing of what it brought.
4. A delivery has one row for as long as it is kept, whatever day its later attempts are made on. One writer at a time writes
   what a log partition says, and the log is keyed so that a delivery is in one partition.
5. No call takes more memory or time than its arguments allow: pages, at most `LOOKED_AT` rows looked at, a time limit.
6. Whatever text comes in, from a log or as a question, is made storable by `storable` (`bounds.py`), the same way on both sides.

Errors::

    HistoryError                something the store said or did
    ├── StoreUnavailable        not reachable now; the same call may succeed later
    ├── StoreRefused            it answered no: credentials, rights, a directory that can't be written, a later version's tables
    ├── PositionMoved           somebody else has advanced a partition: read `positions()` again
    └── QueryTooLong            the answer takes longer than a question may take
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from enum import IntEnum
from typing import Final, Generic, NamedTuple, Protocol, TypeVar

from dispatcher.core.request.results import Reason
from dispatcher.history.logged import DAY_MS, LoggedAttempt

T = TypeVar("T")

LOOKED_AT: Final = 20_000
"""Rows that one page looks at, at the most. A page that found less than it was to show has a cursor all the same."""

PAGE_LIMIT: Final = 1000
"""Rows of a page, at the most."""

AWAITING_LOOKED_AT: Final = 2000
"""Undelivered deliveries of a subscription that are looked at, to see what waits for its next attempt."""

UNDELIVERED_LOOKED_AT: Final = 100_000
"""Undelivered deliveries that are looked at to group them, the newest."""

SUCCESSES_LOOKED_AT: Final = 200
"""Deliveries of a subscription that are looked at for its last success, the newest. Older ones are found by their minute."""

VERSIONS_LIMIT: Final = 20_000
"""Versions of subscriptions in an answer, at the most."""

GROUPS_LIMIT: Final = 10_000
"""Groups of statistics, at the most."""

LATENCY_BOUNDS_MS: Final = (5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000)
"""Upper bounds of the counts' latency buckets, inclusive; one more bucket is for what took longer."""


class HistoryError(Exception):
    """Something the store said or did; the message says what, and what to do."""


class StoreUnavailable(HistoryError):
    """The store can't be reached now; the same call may succeed later."""


class StoreRefused(HistoryError):
    """The store answered no; the same call will not succeed until somebody changes something."""


class PositionMoved(HistoryError):
    """A partition stands elsewhere than was expected: somebody else has it, or the history was rebuilt."""


class QueryTooLong(HistoryError):
    """The answer takes too long; ask about a shorter time, or more narrowly."""


class DeliveryState(IntEnum):
    """What has become of a delivery. Of two records of one generation the greater one holds."""

    PENDING = 0
    RETRYING = 1
    DROPPED = 2
    DEAD = 3
    DELIVERED = 4


class LogPartition(NamedTuple):
    """A partition of a topic that is followed. `topic_id` is the broker's own name of the topic: made anew, it has another one."""

    topic: str
    topic_id: str
    partition: int


class Gap(NamedTuple):
    """A stretch of a log that the history doesn't know: its offsets from `first` to before `next`, and its time in Unix ms."""

    partition: LogPartition
    first: int
    next: int
    since_ms: int
    until_ms: int
    reason: str
    """`behind` (skipped, the history was too far behind) or `retention` (deleted before it was read)."""


class EventRow(NamedTuple):
    """An event, and where it stands."""

    topic: str
    partition: int
    offset: int
    time_ms: int
    event_id: str
    event_type: str
    tenant: str | None
    sha256: str
    """Of the body as it was published, in hex."""
    size: int
    """Bytes of the body."""


class DeadRow(NamedTuple):
    """A record of the dead-letter topic."""

    partition: int
    offset: int
    time_ms: int
    reason: str
    delivery_id: str | None
    """None for a record that could not be read as an event."""
    subscription_id: str | None
    event_id: str | None
    event_type: str | None
    tenant: str | None
    topic: str
    """Where the event was read, and so on."""
    source_partition: int
    source_offset: int


class DeliveryRow(NamedTuple):
    """A delivery as it stands. What is said of an attempt is of the last one."""

    delivery_id: str
    created_ms: int
    """When the first that is known of it began: as a day it says where the row is kept, so it never changes."""
    event_id: str
    event_type: str
    tenant: str | None
    subscription_id: str
    topic: str
    partition: int
    offset: int
    generation: int
    state: int
    reason: str | None
    attempts: int
    last_ms: int
    last_attempt: int
    status: int | None
    failure: str | None
    total_ms: int
    due_ms: int | None
    host: str | None
    first: str
    """The first that is known of it, as JSON (`AttemptDetail`). What followed has rows of its own."""


class AttemptRow(NamedTuple):
    """What followed a delivery's first record, as JSON (`AttemptDetail`)."""

    delivery_id: str
    generation: int
    time_ms: int
    attempt: int
    detail: str


class DeliveryDetail(NamedTuple):
    """A delivery with all that is known of its attempts, oldest first, each as JSON."""

    row: DeliveryRow
    attempts: Sequence[str]
    dead_letter: DeadRow | None


DELETED: Final = "deleted"
"""The status of a subscription that is there no more."""


class SubscriptionVersion(NamedTuple):
    """What a subscription was from a time on, as the registry had it. Without secrets."""

    subscription_id: str
    since_ms: int
    tenant: str | None
    status: str
    """`active`, `paused`, `disabled`..., or `deleted`."""
    document: str
    """What decides whether it wants an event, as JSON."""


class LogBatch(NamedTuple):
    """What was read of one partition: from the offset `first` (its position) to before `next`."""

    partition: LogPartition
    first: int | None
    """The position it was read from; None for a partition that has none yet."""
    next: int
    time_ms: int
    """Timestamp of the last record; the history is as of then."""
    attempts: Sequence[LoggedAttempt] = ()
    events: Sequence[EventRow] = ()
    dead: Sequence[DeadRow] = ()
    gap: Gap | None = None


class Standing(NamedTuple):
    """How far a partition has been read."""

    next: int
    time_ms: int
    until: int = 0
    """Below this offset nothing is passed over for being late: somebody has asked for all of it."""


class DeliveryQuery(NamedTuple):
    """Deliveries of a time, newest first. What is None isn't asked for."""

    since_ms: int
    until_ms: int
    limit: int
    tenant: str | None = None
    subscription_id: str | None = None
    event_id: str | None = None
    event_type: str | None = None
    """A type, or the beginning of one before `*`."""
    states: Collection[DeliveryState] | None = None
    status: tuple[int, int] | None = None
    """From and to, inclusive."""
    reason: str | None = None
    """Why it ended, or why the last attempt had no answer."""
    host: str | None = None
    cause: str | None = None
    """As in `UndeliveredGroup`: of those that wait, are retried or are dead only."""
    after: tuple[int, str] | None = None
    """The time and id of the last one of the page before."""


class UndeliveredQuery(NamedTuple):
    """Deliveries of a time that wait, are retried or are dead. What is None isn't asked for."""

    since_ms: int
    until_ms: int
    tenant: str | None = None
    subscription_id: str | None = None


class UndeliveredGroup(NamedTuple):
    """Those of one subscription with one cause. Times in Unix ms."""

    subscription_id: str
    cause: str
    """Why the last attempt had no answer, else the status of its answer, else the reason why there was no attempt."""
    pending: int
    retrying: int
    dead: int
    first_ms: int
    """When the oldest of them began."""
    last_ms: int
    """When the last attempt of one of them was."""
    due_ms: int | None
    """When the next one is due, as far as that is known."""


class Undelivered(NamedTuple):
    """Groups, those of most deliveries first; at most `GROUPS_LIMIT`."""

    groups: Sequence[UndeliveredGroup]
    at_least: bool
    """There may be more of each: no more than `UNDELIVERED_LOOKED_AT` deliveries were looked at."""


class EventQuery(NamedTuple):
    """Events of a time, newest first. What is None isn't asked for."""

    since_ms: int
    until_ms: int
    limit: int
    tenant: str | None = None
    event_type: str | None = None
    event_id: str | None = None
    after: tuple[int, str, str, int, int] | None = None
    """Time, id, topic, partition and offset of the last one of the page before."""


class CountQuery(NamedTuple):
    """Counts of a time, added up per `step_ms` and by some of `DIMENSIONS`."""

    since_ms: int
    until_ms: int
    step_ms: int
    by: Sequence[str] = ()
    tenant: str | None = None
    subscription_id: str | None = None
    event_type: str | None = None
    """A type, or the beginning of one before `*`."""
    host: str | None = None
    status: tuple[int, int] | None = None
    """From and to, inclusive; below 0 the failures of `FAILURE_CODES`."""
    only: Sequence[tuple[str | int, ...]] | None = None
    """Of these groups only, by their keys."""
    busiest: int | None = None
    """At most so many groups, those with most attempts first, without a look at when (`step_ms` is all of the time)."""


DIMENSIONS: Final = ("tenant", "subscription_id", "event_type", "host", "status")
"""What counts can be grouped by."""

FAILURE_CODES: Final[Mapping[str, int]] = {
    reason.value: -code
    for code, reason in enumerate(
        (
            Reason.TIMEOUT,
            Reason.CONNECT_TIMEOUT,
            Reason.CONNECT_REFUSED,
            Reason.CONNECT_FAILED,
            Reason.DNS_NOT_FOUND,
            Reason.DNS_FAILED,
            Reason.TLS_EXPIRED,
            Reason.TLS_HOSTNAME,
            Reason.TLS_UNTRUSTED,
            Reason.TLS_FAILED,
            Reason.CLOSED,
            Reason.PROTOCOL_ERROR,
            Reason.RESPONSE_TOO_LARGE,
            Reason.BLOCKED,
            Reason.PROXY_ERROR,
            Reason.CANCELLED,
        ),
        1,
    )
}
"""What stands for a status in counts where there was no answer. They are kept: a new one goes to the end."""

FAILURE_CLASSES: Final[Mapping[str, tuple[int, int]]] = {
    "3xx": (300, 399),
    "4xx": (400, 499),
    "5xx": (500, 599),
    "timeout": (-2, -1),
    "connect": (-4, -3),
    "dns": (-6, -5),
    "tls": (-10, -7),
}
"""Failures of counts by class: from and to, inclusive, of their statuses. What is in none of them is `other`."""

COUNTED: Final = (
    "attempts",
    "delivered",
    "failed",
    "dead",
    "dropped",
    "parked",
    "total_ms",
    "late_ms",
    "late_count",
)
"""What is counted. `total_ms` is the sum of the attempts' durations; `late_ms` of `late_count` deliveries is from the event's own time to
the acknowledgement, without those that were sent again by hand or by a replay."""

BUCKETS: Final = tuple(f"b{number}" for number in range(len(LATENCY_BOUNDS_MS) + 1))


class CountKey(NamedTuple):
    """What is counted together: a minute (Unix ms of its start), and what `DIMENSIONS` say.

    Status: of the answer; one of `FAILURE_CODES` where there was none; 0 for what ended or was parked without a request.
    """

    minute_ms: int
    tenant: str
    """Empty for none: unlike NULL it is equal to itself."""
    subscription_id: str
    event_type: str
    host: str
    status: int


class CountRow(NamedTuple):
    """A group of counts."""

    time_ms: int
    key: tuple[str | int, ...]
    """The values of the dimensions that were asked for."""
    counts: Sequence[int]
    """As `COUNTED`, then `BUCKETS`, then the failures of `FAILURE_CLASSES`."""


class Awaiting(NamedTuple):
    """Deliveries of a subscription that wait for their next attempt, in memory or in a tier. Times in Unix ms."""

    waiting: int
    at_least: bool
    """There may be more: no more were looked at."""
    oldest_ms: int | None
    """When the oldest of them began."""
    due_ms: int | None
    """When the next one is due, as far as that is known."""


class HistoryPage(NamedTuple, Generic[T]):
    """Some of what was asked for. `more`: whether there may be others, behind the key `last` of what was looked at."""

    items: Sequence[T]
    last: tuple[int | str, ...] | None


class Retention(NamedTuple):
    """How long what is kept, in ms."""

    rows_ms: int
    counts_ms: int

    def oldest_day(self, now_ms: int) -> int:
        """The first day whose rows are still kept, in part at least."""
        return (now_ms - self.rows_ms) // DAY_MS

    def oldest_minute(self, now_ms: int) -> int:
        """The first minute whose counts are kept."""
        return (now_ms - self.counts_ms) // 60_000 * 60_000


class Sizes(NamedTuple):
    """How much a store holds. As of its last look."""

    rows: int
    size: int
    """In bytes."""


class HistoryStore(Protocol):
    """A place where the history is kept."""

    @property
    def shared(self) -> bool:
        """Whether several processes write to it and share the partitions, or each has one of its own."""

    @property
    def problem(self) -> str | None:
        """What is wrong with it now, in one sentence; None when all is well."""

    async def open(self) -> None:
        """Make its tables, or bring those of an earlier version up to date. Raises StoreUnavailable or StoreRefused."""

    async def close(self) -> None: ...

    async def positions(self) -> Mapping[LogPartition, Standing]:
        """How far each partition has been read."""

    async def apply(self, batches: Sequence[LogBatch], now_ms: int) -> None:
        """Keep what was read, and advance. Raises PositionMoved, StoreUnavailable or StoreRefused: then nothing is kept."""

    async def rebuild(self, positions: Mapping[LogPartition, Standing]) -> None:
        """Forget all that came from the logs, and stand here. Versions of subscriptions stay: no topic has them for as long."""

    async def restart(self, partitions: Sequence[LogPartition]) -> None:
        """Forget the positions of these: they are other logs now, and read from their beginnings."""

    async def cut(self, partition: LogPartition, next_: int) -> None:
        """Stand at `next_` where a later position is known: the log has lost its end, and other records will come at these offsets.

        What the lost records said stays: it has happened.
        """

    async def retain(self, now_ms: int) -> None:
        """Make room for the days to come, and let go of what is too old."""

    async def note_versions(self, versions: Sequence[SubscriptionVersion]) -> None:
        """Keep those that differ from what is known to have been before."""

    async def versions(self, subscription_ids: Collection[str]) -> Sequence[SubscriptionVersion]:
        """Those of these subscriptions, by id and time, the oldest first; at most `VERSIONS_LIMIT`."""

    async def present_subscriptions(self, after: str, limit: int) -> Sequence[SubscriptionVersion]:
        """The last versions of subscriptions that aren't deleted, by id; those behind the id `after`."""

    async def known_subscriptions(self, tenant: str | None, limit: int) -> Sequence[str]:
        """The ids of subscriptions that were this tenant's at some time, by id."""

    async def deliveries(self, query: DeliveryQuery) -> HistoryPage[DeliveryRow]: ...

    async def delivery(self, delivery_id: str) -> DeliveryDetail | None:
        """The newest of that id."""

    async def events(self, query: EventQuery) -> HistoryPage[EventRow]: ...

    async def counts(self, query: CountQuery) -> Sequence[CountRow]:
        """By time and group, or the busiest first; at most `GROUPS_LIMIT`."""

    async def awaiting(self, subscription_ids: Collection[str]) -> Mapping[str, Awaiting]:
        """What of these subscriptions is to be tried again. Of each the newest `AWAITING_LOOKED_AT` that aren't delivered are looked at."""

    async def undelivered(self, query: UndeliveredQuery) -> Undelivered:
        """What isn't delivered, by subscription and cause. The newest `UNDELIVERED_LOOKED_AT` of the time are looked at."""

    async def last_successes(self, subscription_ids: Collection[str], since_ms: int) -> Mapping[str, int]:
        """When each of these last acknowledged something, at `since_ms` or later. Exact where one of its newest `SUCCESSES_LOOKED_AT` deliveries
        says so, else the beginning of the minute in which it was counted.
        """

    async def gaps(self, since_ms: int, until_ms: int) -> Sequence[Gap]:
        """Those that touch the time, newest first, at most `PAGE_LIMIT`."""

    async def sizes(self) -> Sizes: ...
