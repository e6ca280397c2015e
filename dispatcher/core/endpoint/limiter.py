"""How much an endpoint takes at a time, and how much may wait for it: what lanes and their shares have in common.

A limiter knows what its owner permits (`own`), what the endpoint has asked for (`Backpressure`: a breaker, a Retry-After, a smaller window), and how fast
its queue moves (`throughput.py`). `lane.py` says which deliveries that leaves waiting and which it turns away.

Rules:

1. `limit` is `own`, or less while a window is in force.
2. `failed`, `succeeded`, `throttled` are told before the slot of their attempt is released.
3. `backpressure` is None while nothing is the matter, and is forgotten when it is over, or after `_FORGET` seconds of silence.
"""

from __future__ import annotations

from typing import Final

from dispatcher.core.endpoint.breaker import Breaker, State
from dispatcher.core.endpoint.throughput import Throughput

_NO_WINDOW: Final = 1e9
_FORGET: Final = 600.0
"""Seconds of silence after which backpressure is forgotten that never came to a good end."""


class Backpressure:
    """What has been the matter with an endpoint lately. There is none while nothing is the matter."""

    __slots__ = (
        "asked",
        "breaker",
        "closed_until",
        "cut_at",
        "opened",
        "quiet_until",
        "rising",
        "window",
    )

    def __init__(self) -> None:
        self.breaker: Breaker | None = None
        self.asked = 0.0  # for so many seconds has it asked (Retry-After) since it last took anything
        self.closed_until = 0.0  # likewise: nothing before then, and what comes meanwhile is turned away
        self.quiet_until = 0.0  # likewise, for so short a time that what comes may wait
        self.window = _NO_WINDOW  # attempts at a time
        self.opened = False  # the breaker has, and the window has not been as wide as ever since
        self.rising = False  # the window doubles with each round of successes, instead of growing by one
        self.cut_at = 0.0  # when the window was made smaller: attempts from before say nothing about it


class Limiter:
    """What lanes and shares have in common: how much at a time, and how much may wait."""

    __slots__ = ("backpressure", "done", "in_flight", "limit", "own", "queued", "room", "throughput")

    def __init__(self, limit: int) -> None:
        self.limit = limit  # `own`, or less while a window is in force
        self.in_flight = 0
        self.queued = 0
        self.done = 0
        self.backpressure: Backpressure | None = None
        self.throughput: Throughput | None = None
        self.room = float("inf")  # deliveries that it may have queued
        self.own = limit  # as its owner says

    def _adapt(self) -> None:
        backpressure = self.backpressure
        self.limit = self.own if backpressure is None else min(self.own, int(backpressure.window))

    def _narrow(self, backpressure: Backpressure, window: float, now: float, *, rising: bool) -> None:
        backpressure.window = window
        backpressure.rising = rising
        backpressure.cut_at = now
        self._adapt()

    def _pressed(self) -> Backpressure:
        if self.backpressure is None:
            self.backpressure = Backpressure()
        return self.backpressure

    @property
    def state(self) -> State:
        """Of its breaker."""
        backpressure = self.backpressure
        return (
            State.CLOSED
            if backpressure is None or backpressure.breaker is None
            else backpressure.breaker.state
        )

    @property
    def recovering(self) -> bool:
        """Its breaker has opened, and what it is sent at a time since then, a probe first, is not yet all that it may be."""
        return self.backpressure is not None and self.backpressure.opened

    @property
    def open_until(self) -> float:
        """When its breaker lets the next attempt through; in the past if that has been, or never opened."""
        backpressure = self.backpressure
        return 0.0 if backpressure is None or backpressure.breaker is None else backpressure.breaker.until

    def failed(self, started: float, now: float, random: float, threshold: float) -> bool:
        """An attempt that began at `started` failed; whether that opened the breaker. `random` in [0, 1).

        `threshold` is the share of failures that opens it.
        """
        backpressure = self._pressed()
        if backpressure.breaker is None:
            backpressure.breaker = Breaker(now, threshold)
        if not backpressure.breaker.failed(started, now, random):
            return False
        self._narrow(backpressure, 1.0, now, rising=True)
        backpressure.opened = True
        return True

    def succeeded(self, started: float, now: float) -> bool:
        """An attempt that began at `started` succeeded; whether that closed the breaker. Not needed without `backpressure`."""
        backpressure = self.backpressure
        if backpressure is None:
            return False
        closed = backpressure.breaker is not None and backpressure.breaker.succeeded(started, now)
        if backpressure.window < _NO_WINDOW and started >= backpressure.cut_at:
            backpressure.asked = 0.0
            backpressure.window += 1.0 if backpressure.rising else 1.0 / backpressure.window
            if backpressure.window >= self.own:
                backpressure.window = _NO_WINDOW
                backpressure.opened = False
                if backpressure.breaker is not None:
                    backpressure.breaker.recovered()
            self._adapt()
        return closed

    def throttled(self, started: float, now: float) -> bool:
        """The endpoint is overloaded: half as many at a time, once for each round; whether that was news.

        What it says to the others of the round has been heeded: to call that a failure too would open the breaker of
        one that takes four at a time and was sent sixteen.
        """
        backpressure = self._pressed()
        if started < backpressure.cut_at:
            return False
        self._narrow(backpressure, max(1.0, min(self.limit, self.in_flight) // 2), now, rising=False)
        backpressure.opened = False
        return True

    @property
    def rate_of_completion(self) -> float | None:
        """A second, while busy; None while there is too little evidence."""
        return None if self.throughput is None else self.throughput.rate

    @property
    def wait(self) -> float:
        """Seconds that what is queued last will wait, as far as that is known."""
        rate = self.rate_of_completion
        return 0.0 if rate is None or not self.queued else self.queued / max(rate, 1e-6)

    def _roomy(self, max_wait: float) -> float:  # noqa: ARG002 - a share has an answer
        """The room while nothing is known."""
        return float("inf")

    def _gauge(self, seconds: float, max_wait: float, *, busy: bool, recovering: bool) -> bool:
        """Keep throughput and room current; whether there is any need to. `busy`: more could not have been done.

        While it is `recovering` its throughput is that of a probe: nothing to go by, and whatever was known before is out of date.
        """
        if recovering:
            self.throughput = None
            self.room = self._roomy(max_wait)
            return self.queued > 0
        throughput = self.throughput
        if throughput is None:
            if busy:
                self.throughput = Throughput(self.done)
        elif busy:
            throughput.busy(self.done, self.in_flight, seconds)
            if throughput.rate is not None:
                self.room = max(1.0, throughput.rate * max_wait)
        elif throughput.idle(self.done, seconds):
            self.throughput = None
            self.room = self._roomy(max_wait)
        return self.throughput is not None

    def _settle_down(self, now: float) -> None:
        """Forget the backpressure if it is over."""
        backpressure = self.backpressure
        if backpressure is None:
            return
        breaker = backpressure.breaker
        over = (
            (breaker is None or breaker.spotless(now))
            and backpressure.window >= _NO_WINDOW
            and max(backpressure.closed_until, backpressure.quiet_until) <= now
        )
        if not over and not self.queued and not self.in_flight:
            last = max(backpressure.closed_until, backpressure.quiet_until, backpressure.cut_at)
            if breaker is not None:
                last = max(last, breaker.since, breaker.until)
            over = now - last > _FORGET
        if over:
            self.backpressure = None
            self._adapt()
