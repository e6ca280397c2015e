"""One event owed to one subscription, through all of its attempts; and the route that its requests go by.

In comes an event with a subscription that wants it, from the engine, or a record of a topic of ours (`returning.py`). Out go the results of its
attempts and the end of its waits, to its owner (`sending.py`). A delivery holds its own state only: which room writes what is said in each room.

From the lane to the result there is no task, no future and no timer per delivery: a `Delivery` is itself the exchange that the transport
calls back, and one object lives through all of its attempts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from dispatcher.broker.base import Message
from dispatcher.core.attempt.encode import Decided, Noted
from dispatcher.core.attempt.tracing import DeliveryTrace, Sampler
from dispatcher.core.commit.offsets import PartitionTracker
from dispatcher.core.endpoint.fairness import Fairness, TenantUsage
from dispatcher.core.endpoint.lane import Lane
from dispatcher.core.endpoint.share import Share
from dispatcher.core.event.decode import Event
from dispatcher.core.request.results import Result
from dispatcher.core.request.urls import Target
from dispatcher.core.retry.records import FIRST_GENERATION, Headers, History, Source, delivery_headers
from dispatcher.core.subscription.model import Subscription
from dispatcher.transport.pool import Pool


class DeliveryOwner(ABC):
    """Who is told what becomes of a delivery. A class rather than a protocol: compiled, its calls cost nothing more."""

    @abstractmethod
    def done(self, delivery: Delivery, result: Result) -> None:
        """An attempt is over."""

    @abstractmethod
    def wake(self, delivery: Delivery) -> None:
        """The wait for the next attempt is over."""

    @abstractmethod
    def broken(self, where: str, error: Exception) -> None:
        """An exception where none can be (a bug): the process has to end."""


class DeliveryRoute(Lane["Delivery"]):
    """The way to an origin: its lane, with the pool of its connections. Subscriptions keep theirs (`Subscription.route`).

    With 10,000 hosts in turns, looking lane and pool up for each delivery takes 1 us: nothing of that is in the cache any more.
    """

    __slots__ = ("owner", "pool")

    def __init__(
        self, owner: object, limit: int, max_wait: float, fairness: Fairness, *, reserved: bool
    ) -> None:
        """`owner` is whose route this is; the rest is the lane's."""
        super().__init__(limit, max_wait, fairness, reserved=reserved)
        self.owner: object | None = owner  # None: the route is closed, find another
        self.pool: Pool | None = None  # what goes there without a client certificate went by it last

    def close(self) -> None:
        """Release the lane and the pool. A silent subscription may hold a reference to a closed route for weeks."""
        super().close()
        self.owner = self.pool = None


class Delivery:
    """One event owed to one subscription. The transport's exchange."""

    __slots__ = (
        "attempt",
        "deadline",
        "due",
        "event",
        "event_source",
        "first_attempt_ms",
        "generation",
        "history",
        "hop",
        "hops",
        "lane",
        "last_result",
        "offset",
        "owner",
        "parked",
        "queued",
        "replay",
        "request",
        "serial",
        "share",
        "size",
        "started",
        "subscription",
        "trace",
        "tracker",
        "triggered_by",
        "usage",
    )

    share: Share[Delivery]
    lane: DeliveryRoute

    def __init__(
        self,
        owner: DeliveryOwner,
        event: Event,
        subscription: Subscription,
        tracker: PartitionTracker,
        offset: int,
        serial: int = 0,
    ) -> None:
        """`serial` is that of the index that `subscription` was found in; 0: it is looked up before it is attempted."""
        self.owner = owner
        self.event = event
        self.size = len(event.body)  # bytes that it counts for, as long as it is owed
        self.subscription = subscription
        self.serial = serial
        self.tracker = tracker
        self.offset = offset
        self.usage: TenantUsage | None = None  # its tenant's, where it counts
        self.event_source: Source | None = None  # where the event was read, if not at the tracker's offset
        self.attempt = 0
        self.generation = FIRST_GENERATION
        self.replay: str | None = None  # the id of the replay that it belongs to
        self.triggered_by: str | None = None  # who asked for its generation
        self.parked = 0  # times since the last attempt
        self.first_attempt_ms: int | None = None
        self.last_result: str | None = None
        self.history: History = ()
        self.request = b""
        self.deadline = 0.0
        self.queued = 0.0  # when it came into its lane
        self.started = 0.0
        self.due = 0.0
        self.trace: DeliveryTrace | None = None  # of one that is sampled, from the first of its spans
        self.hop: Target | None = None  # where a redirect has led this attempt
        self.hops = 0

    @property
    def source(self) -> tuple[str, int, int]:
        """The topic, partition and offset that the event was read from."""
        if self.event_source is not None:
            return self.event_source
        tracker = self.tracker
        return tracker.topic, tracker.partition, self.offset

    def sampled_by(self, sampler: Sampler) -> bool:
        """Whether it is traced."""
        source = self.event_source
        if source is None:
            return sampler.samples(self.event, self.tracker.partition, self.offset)
        return sampler.samples(self.event, source.partition, source.offset)

    @property
    def overdue(self) -> bool:
        """Whether it has been owed for longer than `retry.hold_limit`."""
        return self.offset < self.tracker.overdue_below

    def record(
        self,
        topic: str,
        reason: str,
        *,
        due: float | None = None,
        parked: int = 0,
        extra: Headers | None = None,
        unix: float | None = None,
    ) -> Message:
        """Its record for a topic of ours. `due` and `unix` (when it is written) in Unix seconds; `extra` are further headers."""
        event = self.event
        headers = delivery_headers(
            event,
            self.subscription.id,
            self.source,
            attempt=self.attempt,
            first_attempt_ms=self.first_attempt_ms,
            last_result=self.last_result,
            history=self.history,
            reason=reason,
            due=due,
            parked=parked,
            generation=self.generation,
            replay=self.replay,
            triggered_by=self.triggered_by,
        )
        if extra is not None:
            headers += extra
        key = self.subscription.id.encode()
        timestamp_ms = None if unix is None else int(unix * 1000)
        return Message(topic, event.body, key, headers, timestamp_ms=timestamp_ms)

    def noted(
        self,
        result: Result,
        decision: str,
        now: float,
        unix: float,
        due: float | None = None,
        reason: str | None = None,
    ) -> Noted:
        """What the attempt log is told of an attempt that ended `now` (by the loop's clock; `unix`: by the wall's). `due` (Unix seconds) is the next try; `reason` why the delivery ends with it, or is parked."""
        topic, partition, offset = self.source
        return Noted(
            self.event,
            self.subscription,
            topic,
            partition,
            offset,
            self.attempt,
            self.generation,
            self.replay,
            self.triggered_by,
            self.queued,
            self.started,
            result,
            decision,
            now,
            unix,
            due,
            reason,
        )

    def decided(self, decision: str, reason: str, unix: float) -> Decided:
        """What the attempt log is told of an end, or of a parking, without a request."""
        return Decided(
            self.event,
            self.subscription.id,
            self.source,
            self.subscription,
            self.attempt,
            decision,
            reason,
            unix,
            self.generation,
            self.replay,
            self.last_result,
            self.triggered_by,
        )

    def done(self, result: Result) -> None:
        """The attempt is over (called by the transport)."""
        try:
            self.owner.done(self, result)
        except Exception as error:  # noqa: BLE001 - rule 2 of `sending.py`
            self.owner.broken("result of an attempt", error)

    def wake(self) -> None:
        """The wait is over (called by the timing wheel)."""
        try:
            self.owner.wake(self)
        except Exception as error:  # noqa: BLE001 - rule 2 of `sending.py`
            self.owner.broken("retry", error)
