"""What has just been indexed, told once a second to whoever listens: pages that show what goes on.

The history's indexer reads every record of the attempt log anyway. While nobody listens it costs one look at an empty dictionary
for each round of the indexer, and deliveries nothing. What is told is what lists would show now: a page that hears of a change finds
it when it asks.

Rules:

1. What is counted is counted once for each channel (whose, and of which subscription), however many listen to it.
2. Nothing grows: a second's message has so many deliveries and subscriptions at the most, and a listener so many messages. One that
   doesn't take them is told so, and ended.
3. A listener hears only of its tenant.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, Final, NamedTuple

import orjson

from dispatcher.control.errors import Overloaded
from dispatcher.control.history import Progress
from dispatcher.core.attempt.outcome import DEAD, DELIVERED, DROPPED, PARKED, RETRY
from dispatcher.core.text.times import rfc3339
from dispatcher.history.base import LogBatch
from dispatcher.history.logged import LoggedAttempt
from dispatcher.history.merge import made

HEARTBEAT: Final = 5.0
"""Seconds at the most between two messages."""
MAX_STREAMS: Final = 200
MAX_OF_CALLER: Final = 10
_TURN: Final = 1.0  # seconds
_SHOWN: Final = 20  # deliveries of a second: the newest
_SUBSCRIPTIONS: Final = 100  # of a second: the busiest
_REMEMBERED: Final = 10_000  # subscriptions of which is known whether they fail
_WAITING: Final = 30  # messages that a listener has not taken

_STATES: Final = {
    DELIVERED: "delivered",
    RETRY: "retrying",
    PARKED: "pending",
    DEAD: "dead",
    DROPPED: "dropped",
}


class Channel(NamedTuple):
    """What is listened to: of a tenant (None: of all), and of a subscription (None: of all)."""

    tenant: str | None
    subscription_id: str | None


class _Turn:
    """What a channel says of one second."""

    __slots__ = ("counts", "deliveries", "failing", "seen", "subscriptions")

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.subscriptions: dict[str, list[int]] = {}  # delivered and failed of each
        self.deliveries: deque[LoggedAttempt] = deque(maxlen=_SHOWN)
        self.seen = 0
        self.failing: dict[str, tuple[bool, str]] = {}

    def take(self, attempt: LoggedAttempt) -> None:
        decision = attempt.decision
        failed = made(attempt) and decision != DELIVERED
        self.counts["attempts"] += made(attempt)
        self.counts["delivered"] += decision == DELIVERED
        self.counts["failed"] += failed
        self.counts["dead"] += decision == DEAD
        counts = self.subscriptions.setdefault(attempt.subscription_id, [0, 0])
        counts[0] += decision == DELIVERED
        counts[1] += failed
        if decision in _STATES:
            self.seen += 1
            self.deliveries.append(attempt)

    def messages(self, as_of: str | None) -> bytes:
        busiest = sorted(self.subscriptions.items(), key=lambda item: -sum(item[1]))[:_SUBSCRIPTIONS]
        said = [
            message(
                "tick",
                {
                    "as_of": as_of,
                    **{name: self.counts[name] for name in ("attempts", "delivered", "failed", "dead")},
                    "subscriptions": {
                        id_: {"delivered": delivered, "failed": failed}
                        for id_, (delivered, failed) in busiest
                    },
                },
            )
        ]
        if self.deliveries:
            shown = [_delivery(attempt) for attempt in reversed(self.deliveries)]
            said.append(message("deliveries", {"deliveries": shown, "more": self.seen - len(shown)}))
        said += [
            message("failing", {"subscription": id_, "failing": failing, "result": result})
            for id_, (failing, result) in self.failing.items()
        ]
        return b"".join(said)


def message(event: str, data: dict[str, Any]) -> bytes:
    """One event of a stream (server-sent events)."""
    return b"event: %b\ndata: %b\n\n" % (event.encode(), orjson.dumps(data))


def _delivery(attempt: LoggedAttempt) -> dict[str, Any]:
    return {
        "id": attempt.delivery_id,
        "subscription": attempt.subscription_id,
        "tenant": attempt.tenant,
        "event_id": attempt.event_id,
        "event_type": attempt.event_type,
        "state": _STATES[attempt.decision],
        "status": attempt.status if isinstance(attempt.status, int) else None,
        "reason": next((each for each in (attempt.reason, attempt.failure) if isinstance(each, str)), None),
        "failure": attempt.failure if isinstance(attempt.failure, str) else None,
        "attempt": attempt.attempt,
        "host": attempt.host if isinstance(attempt.host, str) else None,
        "duration_ms": attempt.total_ms if isinstance(attempt.total_ms, int) else None,
        "at": rfc3339(attempt.time_ms),
    }


class _Listener:
    """One stream."""

    def __init__(self) -> None:
        self.messages: deque[bytes] = deque()
        self.wake = asyncio.Event()
        self.ended: str | None = None

    def tell(self, said: bytes) -> None:
        if len(self.messages) >= _WAITING:
            self.end("slow")
            return
        self.messages.append(said)
        self.wake.set()

    def end(self, reason: str) -> None:
        self.messages.clear()
        self.ended = self.ended or reason
        self.wake.set()

    async def next(self, due: float) -> bytes | None:
        """The next message; None at `due` (loop time), and once it is ended."""
        while self.ended is None:
            if self.messages:
                return self.messages.popleft()
            self.wake.clear()
            try:
                async with asyncio.timeout_at(due):
                    await self.wake.wait()
            except TimeoutError:
                return None
        return None


class Live:
    """Tells listeners what is indexed."""

    def __init__(self, progress: Progress | None, *, complete: bool) -> None:
        """`complete`: this process indexes everything. Else it hears of a part, and pages have to ask by themselves too."""
        self._progress = progress
        self._complete = complete
        self._channels: dict[Channel, set[_Listener]] = {}
        self._turns: dict[Channel, _Turn] = {}
        self._failing: dict[str, bool] = {}
        self._callers: Counter[str] = Counter()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def listening(self) -> int:
        """How many streams there are."""
        return self._callers.total()

    def close(self) -> None:
        """End every stream."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for listeners in self._channels.values():
            for listener in listeners:
                listener.end("stopping")

    # What the indexer tells.

    def indexed(self, batches: Sequence[LogBatch]) -> None:
        """These are in the history now."""
        if not self._channels or self._closed:
            return
        for batch in batches:
            for attempt in batch.attempts:
                self._take(attempt)
        if self._turns and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_TURN, self._flush)

    def _take(self, attempt: LoggedAttempt) -> None:
        id_ = attempt.subscription_id
        change = self._changed(id_, attempt)
        for tenant in {None, attempt.tenant}:
            for channel in (Channel(tenant, None), Channel(tenant, id_)):
                if channel not in self._channels:
                    continue
                turn = self._turns.get(channel)
                if turn is None:
                    turn = self._turns[channel] = _Turn()
                turn.take(attempt)
                if change is not None:
                    turn.failing[id_] = change

    def _changed(self, id_: str, attempt: LoggedAttempt) -> tuple[bool, str] | None:
        """Whether the subscription has begun to fail, or has ended failing, and by which result."""
        if not made(attempt) or attempt.decision not in (DELIVERED, RETRY, DEAD):
            return None
        failing = attempt.decision != DELIVERED
        if self._failing.get(id_, False) == failing:
            return None
        if failing:
            if len(self._failing) >= _REMEMBERED:
                self._failing.pop(next(iter(self._failing)))
            self._failing[id_] = True
        else:
            self._failing.pop(id_, None)
        status = attempt.status if isinstance(attempt.status, int) else None
        failure = attempt.failure if isinstance(attempt.failure, str) else "failed"
        return failing, failure if status is None else f"status {status}"

    def _flush(self) -> None:
        self._timer = None
        turns, self._turns = self._turns, {}
        as_of = self._as_of()
        for channel, turn in turns.items():
            if listeners := self._channels.get(channel):
                said = turn.messages(as_of)
                for listener in listeners:
                    listener.tell(said)

    def _as_of(self) -> str | None:
        as_of_ms = 0 if self._progress is None else self._progress.as_of_ms()
        return rfc3339(as_of_ms) if as_of_ms else None

    # What listeners ask.

    def listen(
        self, caller: str, channel: Channel, replica: str, admitted: Callable[[], bool]
    ) -> AsyncGenerator[bytes, None]:
        """A stream of messages. Raises Overloaded. `admitted` is asked at each heartbeat whether the caller may still listen."""
        if self._full(caller):
            raise Overloaded(
                f"there are {MAX_STREAMS} streams, or {MAX_OF_CALLER} of this caller: close one", HEARTBEAT
            )
        return self._stream(caller, channel, replica, admitted)

    async def _stream(
        self, caller: str, channel: Channel, replica: str, admitted: Callable[[], bool]
    ) -> AsyncGenerator[bytes, None]:
        if self._full(caller):
            yield message("end", {"reason": "busy"})  # others have come in the same moment
            return
        listener = _Listener()
        self._callers[caller] += 1
        self._channels.setdefault(channel, set()).add(listener)
        if self._closed:
            listener.end("stopping")
        clock = asyncio.get_running_loop().time
        try:
            yield message("hello", {"as_of": self._as_of(), "replica": replica, "complete": self._complete})
            due = clock() + HEARTBEAT
            while (said := await listener.next(due)) is not None or listener.ended is None:
                if said is None:
                    due = clock() + HEARTBEAT
                    if not admitted():
                        listener.end("session")
                        break
                    said = message("heartbeat", {"as_of": self._as_of()})
                yield said
            yield message("end", {"reason": listener.ended})
        finally:
            self._forget(caller, channel, listener)

    def _full(self, caller: str) -> bool:
        return self.listening >= MAX_STREAMS or self._callers[caller] >= MAX_OF_CALLER

    def _forget(self, caller: str, channel: Channel, listener: _Listener) -> None:
        self._callers[caller] -= 1
        if not self._callers[caller]:
            del self._callers[caller]
        listeners = self._channels[channel]
        listeners.discard(listener)
        if not listeners:
            del self._channels[channel]
            self._turns.pop(channel, None)
        if not self._channels:
            self._failing.clear()
