"""When to leave an endpoint alone: circuit breakers, and how many at a time it gets when it comes back.

An endpoint that fails every time costs: a connection and a timeout for each attempt, a step of the schedule for each
delivery, and it is not helped by being asked more. So a breaker counts. When nearly everything of the last half
minute failed it opens: what is owed is parked instead of attempted, and uses up none of its schedule. After a
cool-down one attempt is let through, with a real delivery. If that succeeds the breaker closes. If not it opens again; from a
quarter of a minute on for twice as long each time. Most outages are stalls of seconds: their end is to be noticed within seconds.

There is one for each subscription, which hears of statuses, timeouts and broken answers, and one for each host, which hears
of what nobody on that host can help: DNS, connecting, TLS. So a subscriber can't close a host to its
neighbours by answering 500. Only what is troubled has one at all: with a hundred thousand healthy hosts there is none.

An endpoint that comes back, or says that it is overloaded (429, 502, 504), is not met by everything that waited for it: its
*window*, the attempts at a time, begins at one and doubles with each round of successes (slow start), or was halved
and grows by one a round, as TCP does since Jacobson (Congestion Avoidance and Control, 1988). Of a round that is answered so, one answer counts
as a failure: the window is the remedy, and the breaker is for those whom it does not help.

The share of failures that opens one is high by default (four of five) on purpose: of an endpoint behind a balancer with one of two machines broken half of
all attempts fail, and plain retries serve it better than parking.

Rejected: counting consecutive failures (one lucky answer in a thousand would keep a dead endpoint's breaker closed); probing with a
request of our own (an endpoint may answer a ping and fail on every event); a timer that closes it (nothing is owed while it is
open, so nothing needs to wake up).

Rules:

1. A result counts only if its attempt began after the last change of state: stragglers from before say nothing.
2. While it is open nothing is admitted; after the cool-down the next to ask finds it probing, and then the window is one.
3. What says nothing about the endpoint (the deployment's own proxy, a stop) must not be told here.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from dispatcher.core.request.results import Failure, Reason, Response, Result

MINIMUM: Final = 10
"""Results in the window below which nothing is concluded."""

WINDOW: Final = 30.0
"""Seconds (half of that at the least) over which results are counted."""

COOL_DOWN: Final = 5.0
"""Seconds that it stays open at the most, the first time and for as long as the outage is a young one."""

COOL_DOWN_MOST: Final = 300.0

YOUNG: Final = 15.0
"""Seconds from the first opening on during which cool-downs don't grow."""

_JITTER: Final = 0.2


class State(StrEnum):
    """What an attempt finds."""

    CLOSED = "closed"
    OPEN = "open"
    PROBING = "probing"


class Blame(StrEnum):
    """Whom a failed attempt speaks against."""

    SUBSCRIPTION = "subscription"
    HOST = "host"
    NOBODY = "nobody"


_HOSTS: Final = frozenset(
    {
        Reason.CONNECT_TIMEOUT,
        Reason.CONNECT_REFUSED,
        Reason.CONNECT_FAILED,
        Reason.DNS_NOT_FOUND,
        Reason.DNS_FAILED,
    }
)
_TLS: Final = frozenset({Reason.TLS_EXPIRED, Reason.TLS_HOSTNAME, Reason.TLS_UNTRUSTED, Reason.TLS_FAILED})
_REACHED: Final = frozenset({Reason.CLOSED, Reason.PROTOCOL_ERROR, Reason.RESPONSE_TOO_LARGE})
_NOBODYS: Final = frozenset({Reason.PROXY_ERROR, Reason.CANCELLED})


def blame(result: Result, *, own_certificate: bool) -> Blame:
    """Whom a result that is no acknowledgement speaks against.

    With a client certificate of the subscription's own, a failed handshake may be that one's fault.
    """
    if isinstance(result, Response):
        return Blame.SUBSCRIPTION
    reason = result.reason
    if reason in _NOBODYS:
        return Blame.NOBODY
    if reason in _HOSTS or (reason in _TLS and not own_certificate):
        return Blame.HOST
    return Blame.SUBSCRIPTION


def reached_host(result: Result) -> bool:
    """Whether the attempt got as far as a working connection, so that the host is well."""
    return not isinstance(result, Failure) or result.reason in _REACHED


class Breaker:
    """The state of one circuit. Times are seconds of any one clock."""

    __slots__ = (
        "_begun",
        "_cool_down",
        "_earlier",
        "_earlier_begun",
        "_failed",
        "_opened_first",
        "_succeeded",
        "_threshold",
        "since",
        "state",
        "until",
    )

    def __init__(self, now: float, threshold: float) -> None:
        """`threshold` is the share of failures from which on it opens."""
        self.state = State.CLOSED
        self.since = float("-inf")
        """When the state last changed."""
        self.until = 0.0
        """When an open one lets the first attempt through."""
        self._threshold = threshold
        self._cool_down = COOL_DOWN
        self._opened_first: float | None = None  # when it opened, of this outage
        self._begin(now)
        self._earlier = (0, 0)
        self._earlier_begun = now

    def _begin(self, now: float) -> None:
        self._begun = now
        self._failed = 0
        self._succeeded = 0

    def _turn(self, now: float) -> None:
        """Two halves of a window, of which the elder is forgotten when the younger is full: no list of results."""
        age = now - self._begun
        if age >= WINDOW / 2:
            self._earlier = (self._failed, self._succeeded) if age < WINDOW else (0, 0)
            self._earlier_begun = self._begun
            self._begin(now)
        elif now - self._earlier_begun >= WINDOW:
            # There were no results for a while, and the elder half is older than the window by now.
            self._earlier = (0, 0)

    def failed(self, started: float, now: float, random: float) -> bool:
        """An attempt that began at `started` failed; whether that opened it. `random` in [0, 1)."""
        if self.state is State.OPEN or started < self.since:
            return False
        if self.state is State.CLOSED:
            self._turn(now)
            self._failed += 1
            failures = self._failed + self._earlier[0]
            results = failures + self._succeeded + self._earlier[1]
            if results < MINIMUM or failures < self._threshold * results:
                return False
        self.state = State.OPEN
        self.since = now
        if self._opened_first is None:
            self._opened_first = now
        if now - self._opened_first >= YOUNG:
            self._cool_down = min(2 * self._cool_down, COOL_DOWN_MOST)
        self.until = now + self._cool_down * (1 - _JITTER * random)
        return True

    def succeeded(self, started: float, now: float) -> bool:
        """An attempt that began at `started` succeeded; whether that closed it."""
        if self.state is State.OPEN or started < self.since:
            return False
        if self.state is State.PROBING:
            self.state = State.CLOSED
            self.since = now
            self._begin(now)
            self._earlier = (0, 0)
            return True
        self._turn(now)
        self._succeeded += 1
        return False

    def admits(self, now: float) -> bool:
        """Whether anything may be attempted."""
        if self.state is State.OPEN and now >= self.until:
            self.state = State.PROBING
            self.since = now
        return self.state is not State.OPEN

    def recovered(self) -> None:
        """The slow start is over: should it fail again, that is a new failure."""
        self._cool_down = COOL_DOWN
        self._opened_first = None

    def spotless(self, now: float) -> bool:
        """Whether it is closed and has seen no failure for a whole window."""
        if self.state is not State.CLOSED:
            return False
        self._turn(now)
        return not self._failed and not self._earlier[0] and self._opened_first is None
