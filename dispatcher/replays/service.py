"""What callers do with replays: plan, start, list, pause, resume, cancel. Running them is `runner.py`'s.

Rules:

1. A tenant's key sees and starts its own replays only: those that keys of its tenant started. Of others it learns nothing.
2. Everything that is wrong with a request is told at once, before anything is read.
"""

from __future__ import annotations

from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from secrets import token_hex
from typing import Final, NamedTuple

import structlog
from orjson import OPT_SORT_KEYS, dumps

from dispatcher.broker.base import BrokerError
from dispatcher.control.errors import (
    Invalid,
    NotFound,
    Overloaded,
    Unavailable,
    VersionMismatch,
    WrongState,
)
from dispatcher.control.history import HistoryOff
from dispatcher.core.commit.note import read_note
from dispatcher.core.flaws import Flaw
from dispatcher.core.replay.job import (
    JobState,
    NotPossible,
    ReplayJob,
    ReplayRange,
    ReplayRequest,
    ReplaySource,
)
from dispatcher.core.retry.generations import replay_id
from dispatcher.core.subscription.model import Status
from dispatcher.history.base import HistoryError, QueryTooLong
from dispatcher.replays.planning import ReplayPlan, plan_history, plan_log, plan_ranges
from dispatcher.replays.runner import ReplayParts
from dispatcher.replays.store import ReplayClaim, ReplayStore

log = structlog.get_logger(__name__)

PAGE: Final = 50
MAX_PAGE: Final = 200
MOST: Final = 100
"""Replays that are not over, of all."""
MOST_OF_TENANT: Final = 10
"""Likewise, that keys of one tenant have started."""

_BEFORE_MS: Final = (
    60_000  # before a pause whose place isn't known: what was published then may have been read after it
)
_TRIES: Final = 5  # to make a change on a job that its runner changes too
_REMEDIES: Final = {
    Status.PAUSED: "resume it first",
    Status.PENDING: "it is sent nothing before its endpoint has passed the validation",
    Status.DISABLED: "enable it first",
}
_USED: Final = "this Idempotency-Key was used for another request: use a new one"
_DEFAULT_STATES: Final = ("dead", "dropped")


@dataclass(frozen=True, slots=True)
class ReplayAsked:
    """What a caller asks for. Times in Unix ms, the rate in deliveries a second."""

    source: ReplaySource
    subscription: str | None = None
    tenant: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None
    event_types: Sequence[str] = ()
    states: Sequence[str] = ()
    status_codes: Sequence[str] = ()
    reasons: Sequence[str] = ()
    rate: float | None = None


class Planned(NamedTuple):
    """A dry run: what was asked for, as it was understood, and what it would come to."""

    request: ReplayRequest
    plan: ReplayPlan
    seconds: float | None
    """How long it takes at the rate that was asked for."""
    warnings: Sequence[str]


class ReplayListing(NamedTuple):
    """Some replays, newest first; `next` is where the next page begins."""

    jobs: Sequence[ReplayJob]
    next: str | None


class Replays:
    """The operations. `tenant` None is an operator."""

    def __init__(
        self,
        parts: ReplayParts,
        order: Callable[[int], int],
        *,
        history_is_on: bool,
        check_quota: Callable[[str | None, int], None] | None = None,
    ) -> None:
        """`order` makes the order of a command out of Unix ms (`core/retry/generations.py`). `history_is_on`: some replica has a history.

        `check_quota` raises where a tenant has as many that are not over as it may; without it there are `MOST_OF_TENANT`.
        """
        self._check_quota = check_quota
        self._parts = parts
        self._store = parts.store
        self._order = order
        self._history_is_on = history_is_on

    # Start.

    async def plan(self, asked: ReplayAsked, *, tenant: str | None) -> Planned:
        """What it would come to; nothing is sent. Raises Invalid, NotFound, WrongState, HistoryOff, Unavailable."""
        parts = self._parts
        now = self._store.now_ms()
        request = self._checked(asked, tenant, now)
        job = ReplayJob(replay_id(now, ""), request, tenant, now, "")
        selector = parts.selector(job)
        warnings: list[str] = []
        try:
            if request.source is ReplaySource.DELIVERIES:
                if parts.history is None:
                    raise HistoryOff
                plan = await plan_history(parts.history, request, tenant, selector)
            else:
                ranges = await plan_ranges(parts.broker, parts.topics(request.source), request, now)
                dead = request.source is ReplaySource.DEAD_LETTERS
                plan = await plan_log(parts.broker, ranges, selector.dead_letter if dead else selector.event)
        except QueryTooLong as error:
            raise Invalid([Flaw(("since",), str(error))]) from error
        except (BrokerError, HistoryError) as error:
            raise Unavailable(f"what would be sent can't be read now: {error}", 5.0) from error
        if not plan.exact:
            warnings.append("there are too many to look at each: the numbers are estimates")
        if plan.not_active:
            warnings.append(
                f"{plan.not_active} deliveries are left out, since their subscriptions are paused, pending or disabled"
            )
        seconds = None if request.rate is None else plan.deliveries / request.rate
        return Planned(request, plan, seconds, warnings)

    async def start(
        self,
        asked: ReplayAsked,
        *,
        tenant: str | None,
        principal: str,
        name: str,
        idempotency_key: str | None = None,
    ) -> ReplayJob:
        """Start one; it runs in the background. Raises Invalid, NotFound, WrongState, HistoryOff, Overloaded, Unavailable."""
        self._store.check()
        now = self._store.now_ms()
        idempotency = None
        if idempotency_key is not None:
            idempotency = (principal, idempotency_key, _digest(asked))
            earlier = self._earlier(idempotency)
            if earlier is not None:
                return earlier
        request = self._checked(asked, tenant, now)
        self._check_room(tenant)
        id_ = replay_id(self._order(now), token_hex(4))
        if idempotency is not None:
            id_ = await _claimed(self._store, idempotency, id_)
        number = await self._store.next_number()
        job = ReplayJob(id_, request, tenant, now, name, number, idempotency=idempotency)
        try:
            return (await self._store.put(job, base=0)).value
        except VersionMismatch:
            row = self._store.get(id_)
            if row is None or idempotency is None:
                raise
            return row.value  # the same request has begun it meanwhile, on another replica

    async def marks(self) -> tuple[tuple[str, int, int], ...]:
        """Where the event topics are read at least: everything before is taken up. Empty where the broker doesn't tell now."""
        parts = self._parts
        found: list[tuple[str, int, int]] = []
        try:
            for topic in parts.event_topics:
                positions = await parts.broker.positions_of(parts.events_group, topic)
                for (_, number), position in positions.items():
                    note = read_note(topic, number, position.offset, position.metadata)
                    # What is done beyond the commit was taken up, and so was what stands before it.
                    found.append((topic, number, max([position.offset, *(end for _, end in note.done)])))
        except BrokerError as error:
            log.warning("a pause is noted without its place in the topics", error=str(error))
            return ()
        return tuple(sorted(found))

    def check_catch_up(self, tenant: str | None) -> None:
        """Raise Overloaded or Unavailable where `catch_up` would."""
        self._store.check()
        self._check_room(tenant)

    async def catch_up(
        self,
        subscription: str,
        since_ms: int,
        marks: Sequence[tuple[str, int, int]],
        *,
        tenant: str | None,
        name: str,
    ) -> ReplayJob:
        """Send what a subscription, which takes deliveries again, would have been sent since then: from the `marks` on, where there are some.

        Raises NotFound, WrongState, Overloaded, Unavailable.
        """
        self._store.check()
        self._check_subscription(subscription, tenant)
        self._check_room(tenant)
        now = self._store.now_ms()
        parts = self._parts
        asked = ReplayRequest(ReplaySource.EVENTS, now, max(0, since_ms - _BEFORE_MS), subscription, tenant)
        try:
            ranges = await plan_ranges(parts.broker, parts.event_topics, asked, now)
            if marks:
                # Offsets say it exactly: what was published before the pause may have been read, and dropped, after it.
                begins = {(topic, number): at for topic, number, at in marks}
                whole = await plan_ranges(
                    parts.broker, parts.event_topics, replace(asked, since_ms=None), now
                )
                known = {(each.topic, each.partition): each for each in ranges}
                ranges = tuple(
                    made
                    for each in whole
                    if (made := _from(each, begins, known.get((each.topic, each.partition)))) is not None
                )
                asked = replace(asked, since_ms=None)
        except BrokerError as error:
            raise Unavailable(f"the event topics can't be read now: {error}", 5.0) from error
        job = ReplayJob(
            replay_id(self._order(now), token_hex(4)),
            asked,
            tenant,
            now,
            name,
            await self._store.next_number(),
            ranges=ranges,
            exhausted=not ranges,
        )
        return (await self._store.put(job, base=0)).value

    def _checked(self, asked: ReplayAsked, tenant: str | None, now: int) -> ReplayRequest:
        source = asked.source
        flaws: list[Flaw] = []
        until = now if asked.until_ms is None else min(asked.until_ms, now)
        if asked.since_ms is not None and asked.since_ms >= until:
            flaws.append(Flaw(("since",), "must be earlier than until, and not in the future"))
        if asked.states and source is not ReplaySource.DELIVERIES:
            flaws.append(Flaw(("states",), f"are known of the source deliveries only, not of {source}"))
        if source is ReplaySource.EVENTS:
            flaws += [
                Flaw((field,), "are known of the sources deliveries and dead_letters only, not of events")
                for field in ("status_codes", "reasons")
                if getattr(asked, field)
            ]
        if asked.tenant is not None and tenant is not None and asked.tenant != tenant:
            flaws.append(Flaw(("tenant",), "must be the tenant of this key"))
        if source is ReplaySource.EVENTS and asked.subscription is None and asked.since_ms is None:
            flaws.append(
                Flaw(
                    ("since",),
                    "is needed where no subscription is named: else every event there is would be sent to everybody",
                )
            )
        if flaws:
            raise Invalid(flaws)
        if asked.subscription is not None:
            self._check_subscription(asked.subscription, tenant)
        if source is ReplaySource.DELIVERIES and not self._history_is_on:
            raise HistoryOff
        states = tuple(asked.states) or (_DEFAULT_STATES if source is ReplaySource.DELIVERIES else ())
        return ReplayRequest(
            source,
            until,
            asked.since_ms,
            asked.subscription,
            asked.tenant if tenant is None else tenant,
            tuple(asked.event_types),
            states,
            tuple(asked.status_codes),
            tuple(asked.reasons),
            asked.rate,
        )

    def _check_subscription(self, id_: str, tenant: str | None) -> None:
        found = self._parts.index().get(id_)
        if found is None or tenant not in (None, found.tenant):
            raise NotFound(f"there is no subscription {id_}")
        if found.status is Status.ACTIVE:
            return
        remedy = _REMEDIES[found.status]
        raise WrongState(f"{id_} is {found.status}: {remedy}")

    def _check_room(self, tenant: str | None) -> None:
        live = [row.value for row in self._store.rows() if not row.value.state.over]
        own = sum(job.owner == tenant for job in live)
        if self._check_quota is not None:
            self._check_quota(tenant, own)
        if len(live) >= MOST or (self._check_quota is None and tenant is not None and own >= MOST_OF_TENANT):
            most = MOST if len(live) >= MOST else MOST_OF_TENANT
            raise Overloaded(f"there are {most} replays that are not over: wait for one, or cancel one", 60.0)

    def _earlier(self, idempotency: tuple[str, str, str]) -> ReplayJob | None:
        """The replay that the same request began before."""
        for row in self._store.rows():
            known = row.value.idempotency
            if known is not None and known[:2] == idempotency[:2]:
                if known[2] != idempotency[2]:
                    raise WrongState(_USED)
                return row.value
        return None

    # Look, and change.

    def get(self, id: str, *, tenant: str | None) -> ReplayJob:  # noqa: A002 - the field's name
        """One of them. Raises NotFound, Unavailable."""
        self._store.check()
        row = self._store.get(id)
        if row is None or not _sees(tenant, row.value):
            raise NotFound(f"there is no replay {id}")
        return row.value

    def list(
        self,
        *,
        tenant: str | None,
        state: JobState | None = None,
        subscription: str | None = None,
        limit: int = PAGE,
        cursor: str | None = None,
    ) -> ReplayListing:
        """A page of them, newest first."""
        self._store.check()
        found: list[ReplayJob] = []
        for row in reversed(self._store.rows()):
            job = row.value
            if (
                (cursor is not None and job.id >= cursor)
                or not _sees(tenant, job)
                or (state is not None and job.state is not state)
                or (subscription is not None and job.request.subscription != subscription)
            ):
                continue
            if len(found) == limit:
                return ReplayListing(found, found[-1].id)
            found.append(job)
        return ReplayListing(found, None)

    async def pause(self, id: str, *, tenant: str | None) -> ReplayJob:  # noqa: A002 - the field's name
        """Nothing more is sent until it is resumed."""
        return await self._change(id, tenant, lambda job: job.pause(self._store.now_ms()))

    async def resume(self, id: str, *, tenant: str | None) -> ReplayJob:  # noqa: A002 - the field's name
        """Go on."""
        return await self._change(id, tenant, lambda job: job.resume())

    async def cancel(self, id: str, *, tenant: str | None, by: str) -> ReplayJob:  # noqa: A002 - the field's name
        """Nothing more is sent, for good."""
        return await self._change(
            id, tenant, lambda job: job.cancel(self._store.now_ms(), f"cancelled by {by}")
        )

    async def _change(
        self,
        id: str,  # noqa: A002 - the field's name
        tenant: str | None,
        change: Callable[[ReplayJob], ReplayJob],
    ) -> ReplayJob:
        for _ in range(_TRIES):
            job = self.get(id, tenant=tenant)
            row = self._store.get(id)
            assert row is not None  # noqa: S101 - `get` has found it
            try:
                changed = change(job)
                if changed is job:
                    return job
                return (await self._store.put(changed, base=row.version)).value
            except NotPossible as error:
                raise WrongState(str(error)) from error
            except VersionMismatch:
                continue  # its runner has written a checkpoint
        raise Unavailable(f"{id} is changed by others all the time: send it again", 1.0)


def _sees(tenant: str | None, job: ReplayJob) -> bool:
    return tenant is None or job.owner == tenant


async def _claimed(store: ReplayStore, idempotency: tuple[str, str, str], id_: str) -> str:
    """The id of the job that this request begins, or has begun: `id_`, unless the request came before. Raises WrongState, Unavailable."""
    principal, key, asked = idempotency
    claim = await store.claim(_claim_name(principal, key), ReplayClaim(id_, asked))
    if claim.asked != asked:
        raise WrongState(_USED)
    return claim.job


def _claim_name(principal: str, key: str) -> str:
    """Of fixed length, and without what a key may hold."""
    return blake2b(f"{principal}\0{key}".encode(), digest_size=16).hexdigest()


def _digest(asked: ReplayAsked) -> str:
    document = {name: getattr(asked, name) for name in asked.__slots__}
    return urlsafe_b64encode(blake2b(dumps(document, option=OPT_SORT_KEYS), digest_size=16).digest()).decode()


def _from(
    whole: ReplayRange, begins: Mapping[tuple[str, int], int], by_time: ReplayRange | None
) -> ReplayRange | None:
    """The stretch of a partition that a pause has dropped: from its mark on, or by time where it has none."""
    mark = begins.get((whole.topic, whole.partition))
    if mark is None:
        return by_time
    start = max(whole.start, mark)
    return whole._replace(start=start, next=start) if start < whole.end else None
