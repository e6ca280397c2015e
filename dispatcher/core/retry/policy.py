"""What an attempt's result means, as one pure function.

`decide` gets the result, the attempt's number, the subscription's policy, the wall-clock time
and a random number, and returns what happens to the delivery next. Nothing here waits, writes
or logs: the engine carries the decision out, exhaustively, by `match`.

Why Retry-After is a lower bound and never more: an endpoint that asks for five seconds inside a
schedule that waits five minutes gains nothing from being asked sooner, and one that asks for
an hour must get its hour. Jitter spreads the scheduled wait, not what the endpoint asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Final, NamedTuple, assert_never

from dispatcher.core.request.results import Failure, Reason, Response, Result

RETRY_AFTER_CAP: Final = 24 * 3600.0
"""Seconds; an endpoint can't postpone a delivery by more than this at a time."""

PROXY_PAUSE: Final = 5.0
"""Seconds (to twice as many) until a delivery is tried again that the egress proxy did not let through."""

_THROTTLING: Final = frozenset({429, 502, 504})


class RetryPolicy(NamedTuple):
    """The waits between attempts in seconds (N waits make N + 1 attempts), and the share of each to jitter."""

    schedule: tuple[float, ...]
    jitter: float


@dataclass(slots=True)
class Delivered:
    """The endpoint has it."""


@dataclass(slots=True)
class Hold:
    """Try again at `due` (Unix seconds); near enough to wait in memory, with the offset owed."""

    due: float
    counted: bool = True  # False: the attempt never got as far as the endpoint, and doesn't count


@dataclass(slots=True)
class Retry:
    """Try again at `due` (Unix seconds), by way of a retry topic."""

    due: float
    counted: bool = True


@dataclass(slots=True)
class DeadLetter:
    """Give it up; `reason` is a bounded word for topics and labels."""

    reason: str


@dataclass(slots=True)
class Disable:
    """The endpoint wants no more of them: disable the subscription, and dead-letter this delivery."""

    reason: str


Decision = Delivered | Hold | Retry | DeadLetter | Disable

DELIVERED: Final = Delivered()


class Demand(NamedTuple):
    """What an endpoint wants for everything that it is owed, besides the fate of one delivery."""

    wait: float | None
    """Seconds for which it wants nothing (Retry-After)."""
    fewer: bool
    """It is overloaded, and names no time."""


NO_DEMAND: Final = Demand(None, False)


def demand(result: Result, now: float) -> Demand:
    """What a failed attempt says about the subscription's other deliveries; `now` in Unix seconds."""
    if isinstance(result, Failure):
        return NO_DEMAND
    wait = None if result.retry_after is None else parse_retry_after(result.retry_after, now)
    if wait:
        return Demand(wait, False)
    return Demand(None, result.status in _THROTTLING)


def decide(
    result: Result, attempt: int, policy: RetryPolicy, now: float, random: float, horizon: float
) -> Decision:
    """What to do after attempt number `attempt` (1 for the first) ended with `result`.

    `now` is in Unix seconds, `random` in [0, 1), `horizon` the longest wait in seconds that is
    held in memory.
    """
    match result:
        case Response(status=status):
            if 200 <= status < 300:
                return DELIVERED
            if status == 410:
                return Disable("gone")
            asked = demand(result, now).wait
        case Failure(reason=Reason.PROXY_ERROR):
            # The deployment's own proxy: no endpoint is to blame, so no schedule is used up by it.
            return Hold(now + PROXY_PAUSE * (1 + random), counted=False)
        case Failure():
            asked = None
        case _:
            assert_never(result)
    if attempt > len(policy.schedule):
        return DeadLetter("exhausted")
    wait = policy.schedule[attempt - 1]
    wait *= 1 + policy.jitter * (2 * random - 1)
    if asked is not None:
        wait = max(wait, asked)
    make = Hold if wait <= horizon else Retry
    return make(now + wait)


def parse_retry_after(value: str, now: float) -> float | None:
    """Seconds to wait, between 0 and `RETRY_AFTER_CAP`; None if it is neither form of RFC 9110, 10.2.3."""
    value = value.strip()
    if value.isascii() and value.isdigit():
        # int() of a digit string is quadratic in its length, and ten digits are three centuries.
        return RETRY_AFTER_CAP if len(value) > 9 else min(float(value), RETRY_AFTER_CAP)
    try:
        date = parsedate_to_datetime(value)
        # HTTP dates are in GMT, also where the text forgets to say so (RFC 9110, 5.6.7).
        when = date.replace(tzinfo=UTC) if date.tzinfo is None else date
        wait = when.timestamp() - now
    except (ValueError, IndexError, TypeError, OverflowError):
        return None
    return min(max(wait, 0.0), RETRY_AFTER_CAP)
