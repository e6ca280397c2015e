"""A replay as a job: what was asked for, how far it has come, and what may become of it.

One record of the topic `dispatcher.replays` holds one job. The record is the checkpoint, too: whoever runs the job goes on from `ranges` (a log is
read) or `cursor` (the history is asked). What was written behind the checkpoint before a crash is written again, so a delivery may come twice and
none is skipped.

Rules:

1. A job ends in exactly one of `done`, `cancelled`, `failed`, and nothing leads out of these.
2. `ranges` are fixed when the job is planned: what a replay itself adds to a topic is never part of it.
3. The checkpoint only advances: `next` of a range never falls, and lies between `start` and `end`.
4. No two jobs have one `number`, and a later job has a greater one. So each job's deliveries are of a generation that no other job's are of, after a
   crash of its runner too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final, NamedTuple

from dispatcher.core.retry.records import FIRST_GENERATION


class JobState(StrEnum):
    """What has become of a job."""

    PLANNED = "planned"  # nobody runs it yet
    RUNNING = "running"
    PAUSED = "paused"
    DONE = "done"
    CANCELLED = "cancelled"
    FAILED = "failed"

    @property
    def over(self) -> bool:
        """Whether nothing more comes of it."""
        return self in _OVER


_OVER: Final = frozenset({JobState.DONE, JobState.CANCELLED, JobState.FAILED})


class ReplaySource(StrEnum):
    """Where a replay finds what to send."""

    DEAD_LETTERS = "dead_letters"  # the dead-letter topic
    EVENTS = "events"  # the event topics
    DELIVERIES = "deliveries"  # the history


class NotPossible(ValueError):
    """The state of the job doesn't allow this. The message is for people."""


@dataclass(frozen=True, slots=True)
class ReplayRequest:
    """What is to be sent again. What is empty or None isn't asked for."""

    source: ReplaySource
    until_ms: int
    since_ms: int | None = None
    subscription: str | None = None
    tenant: str | None = None
    event_types: tuple[str, ...] = ()
    states: tuple[str, ...] = ()
    status_codes: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    rate: float | None = None
    """Deliveries a second, at the most."""


class ReplayRange(NamedTuple):
    """A stretch of a partition that is read: `start` to before `end`; `next` is the checkpoint."""

    topic: str
    partition: int
    start: int
    next: int
    end: int


Cursor = tuple[int, str]
"""Time and id of the last delivery that the history has shown."""


@dataclass(frozen=True, slots=True)
class ReplayJob:
    """One job. Immutable: each step makes a new one."""

    id: str
    request: ReplayRequest
    owner: str | None
    """The tenant whose key began it; None for an operator."""
    created_ms: int
    created_by: str
    number: int = 0
    """Which replay of the installation it is, from 1; 0 for one that an earlier version began."""
    state: JobState = JobState.PLANNED
    detail: str | None = None
    """Why it failed or was cancelled, or what it waits for."""
    started_ms: int | None = None
    ended_ms: int | None = None
    paused_ms: int | None = None
    ranges: tuple[ReplayRange, ...] | None = None
    """None until it is planned, and where no log is read."""
    cursor: Cursor | None = None
    exhausted: bool = False
    """Everything is read and written to `dispatcher.replay`."""
    looked: int = 0
    """Records or rows that were looked at."""
    written: int = 0
    """Deliveries that were written to `dispatcher.replay`."""
    sent: int = 0
    """Of these, those that are done with: attempted, parked, or handed to a retry topic."""
    skipped: Mapping[str, int] = field(default_factory=dict)
    """What matched and was not sent, by why."""
    per_second: float | None = None
    """How many were sent in a second lately."""
    runner: str | None = None
    """Which replica runs it."""
    updated_ms: int | None = None
    """When its runner said the last of this."""
    idempotency: tuple[str, str, str] | None = None
    """The request that began it: whose, its Idempotency-Key, and a digest of what it asked for."""

    @property
    def generation(self) -> int:
        """The least generation of its deliveries. Above what any replay before it has begun."""
        return FIRST_GENERATION + self.number

    @property
    def behind(self) -> int:
        """Deliveries that are written and not sent yet."""
        return max(0, self.written - self.sent)

    @property
    def fraction(self) -> float | None:
        """How much of the source is read, 0 to 1; None where nobody can tell."""
        if self.exhausted or self.state is JobState.DONE:
            return 1.0
        if self.ranges is not None:
            whole = sum(each.end - each.start for each in self.ranges)
            return 1.0 if not whole else sum(each.next - each.start for each in self.ranges) / whole
        if self.cursor is not None and self.request.since_ms is not None:
            # The history is read from its newest delivery to its oldest.
            whole = max(1, self.request.until_ms - self.request.since_ms)
            return min(1.0, max(0.0, (self.request.until_ms - self.cursor[0]) / whole))
        return None

    def seconds_left(self) -> float | None:
        """How long it takes from now on, as far as that can be told; not while it is paused."""
        rate, fraction = self.per_second, self.fraction
        if self.state.over or self.state is JobState.PAUSED or not rate or not fraction:
            return None
        expected = self.written / fraction
        return max(0.0, expected - self.sent) / rate

    # What people do with it.

    def pause(self, now_ms: int) -> ReplayJob:
        """Nothing more of it is sent until `resume`. Raises NotPossible."""
        self._still("paused")
        return (
            self if self.state is JobState.PAUSED else replace(self, state=JobState.PAUSED, paused_ms=now_ms)
        )

    def resume(self) -> ReplayJob:
        """Go on. Raises NotPossible."""
        self._still("resumed")
        return (
            self
            if self.state is not JobState.PAUSED
            else replace(self, state=JobState.PLANNED, paused_ms=None)
        )

    def cancel(self, now_ms: int, detail: str | None = None) -> ReplayJob:
        """Nothing more of it is sent. Raises NotPossible."""
        if self.state is JobState.CANCELLED:
            return self
        self._still("cancelled")
        return self._ended(JobState.CANCELLED, now_ms, detail)

    def _still(self, what: str) -> None:
        if self.state.over:
            raise NotPossible(f"{self.id} is {self.state}: it can't be {what} any more")

    # What becomes of it.

    def begin(self, now_ms: int, runner: str) -> ReplayJob:
        """A replica runs it from now on."""
        started = now_ms if self.started_ms is None else self.started_ms
        return replace(self, state=JobState.RUNNING, started_ms=started, runner=runner, per_second=None)

    def advanced(
        self,
        *,
        ranges: Sequence[ReplayRange] | None,
        cursor: Cursor | None,
        exhausted: bool,
        looked: int,
        written: int,
        skipped: Mapping[str, int],
    ) -> ReplayJob:
        """So many more were looked at and written."""
        counts = dict(self.skipped)
        for why, count in skipped.items():
            counts[why] = counts.get(why, 0) + count
        return replace(
            self,
            ranges=None if ranges is None else tuple(ranges),
            cursor=cursor,
            exhausted=exhausted,
            looked=self.looked + looked,
            written=self.written + written,
            skipped=counts,
        )

    def carried_over(self, onto: ReplayJob) -> ReplayJob:
        """The progress of this one on what the topic says meanwhile (somebody has paused it, say)."""
        return replace(
            onto,
            ranges=self.ranges,
            cursor=self.cursor,
            exhausted=self.exhausted,
            looked=self.looked,
            written=self.written,
            sent=self.sent,
            skipped=self.skipped,
            per_second=self.per_second,
            updated_ms=self.updated_ms,
        )

    def done(self, now_ms: int) -> ReplayJob:
        """Everything is sent."""
        return self._ended(JobState.DONE, now_ms, None)

    def fail(self, now_ms: int, detail: str) -> ReplayJob:
        """It can't go on."""
        return self._ended(JobState.FAILED, now_ms, detail)

    def _ended(self, state: JobState, now_ms: int, detail: str | None) -> ReplayJob:
        return replace(self, state=state, ended_ms=now_ms, detail=detail, runner=None, per_second=None)

    # As it is kept.

    def document(self) -> dict[str, Any]:
        """As JSON has it."""
        request = self.request
        asked: dict[str, Any] = {
            name: getattr(request, name)
            for name in ("since_ms", "subscription", "tenant", "rate", *_LISTS)
            if getattr(request, name) not in (None, ())
        }
        kept: dict[str, Any] = {
            name: value
            for name in _PLAIN
            if (value := getattr(self, name)) not in (None, 0, False) and value != {}
        }
        if self.ranges is not None:
            kept["ranges"] = [list(each) for each in self.ranges]
        if self.cursor is not None:
            kept["cursor"] = list(self.cursor)
        if self.idempotency is not None:
            kept["idempotency"] = list(self.idempotency)
        return {
            "request": {"source": request.source.value, "until_ms": request.until_ms, **asked},
            "created_ms": self.created_ms,
            "created_by": self.created_by,
            "state": self.state.value,
            **kept,
        }


_LISTS: Final = ("event_types", "states", "status_codes", "reasons")
_PLAIN: Final = (
    "owner",
    "number",
    "detail",
    "started_ms",
    "ended_ms",
    "paused_ms",
    "exhausted",
    "looked",
    "written",
    "sent",
    "skipped",
    "per_second",
    "runner",
    "updated_ms",
)


def read_job(name: str, document: Mapping[str, Any]) -> ReplayJob:
    """Read `document()` of the job with this id. Raises ValueError, KeyError or TypeError."""
    asked = document["request"]
    request = ReplayRequest(
        source=ReplaySource(asked["source"]),
        until_ms=int(asked["until_ms"]),
        since_ms=asked.get("since_ms"),
        subscription=asked.get("subscription"),
        tenant=asked.get("tenant"),
        rate=asked.get("rate"),
        **{each: tuple(map(str, asked.get(each, ()))) for each in _LISTS},
    )
    ranges = document.get("ranges")
    cursor = document.get("cursor")
    idempotency = document.get("idempotency")
    return ReplayJob(
        id=name,
        request=request,
        owner=document.get("owner"),
        created_ms=int(document["created_ms"]),
        created_by=str(document["created_by"]),
        number=int(document.get("number", 0)),
        state=JobState(document["state"]),
        detail=document.get("detail"),
        started_ms=document.get("started_ms"),
        ended_ms=document.get("ended_ms"),
        paused_ms=document.get("paused_ms"),
        ranges=None if ranges is None else tuple(_range(each) for each in ranges),
        cursor=None if cursor is None else (int(cursor[0]), str(cursor[1])),
        exhausted=bool(document.get("exhausted", False)),
        looked=int(document.get("looked", 0)),
        written=int(document.get("written", 0)),
        sent=int(document.get("sent", 0)),
        skipped={str(why): int(count) for why, count in document.get("skipped", {}).items()},
        per_second=document.get("per_second"),
        runner=document.get("runner"),
        updated_ms=document.get("updated_ms"),
        idempotency=None if idempotency is None else (idempotency[0], idempotency[1], idempotency[2]),
    )


def _range(raw: Sequence[Any]) -> ReplayRange:
    topic, partition, start, next_, end = raw
    return ReplayRange(str(topic), int(partition), int(start), int(next_), int(end))
