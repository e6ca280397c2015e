"""Requests that a caller waits for: pings, tests and validations.

The code of deliveries builds, signs, guards and carries a probe. A probe is no delivery: no offset owes it, nothing
retries it, and no status, breaker, limit or queue of the subscription's lane holds it back. An operator who pings at
three in the morning asks whether the endpoint answers *now*. A ping behind ten thousand queued deliveries would not
tell, nor would one that is dropped because the subscription is paused. So probes have slots of their own, few for
each host.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from dispatcher.core.event.decode import Event
from dispatcher.core.request.build import build
from dispatcher.core.request.handshake import (
    Allowed,
    Refused,
    Unknown,
    challenge_request,
    handshake_request,
    judge_challenge,
    judge_handshake,
)
from dispatcher.core.request.netguard import Guard
from dispatcher.core.request.redirects import FOLLOWED, Hop, follow
from dispatcher.core.request.results import Response, Result
from dispatcher.core.request.urls import Origin, Target
from dispatcher.core.subscription.model import ClientCertificate, Subscription
from dispatcher.transport.base import Exchange

_PER_HOST: Final = 4
_ALL: Final = 64
# Seconds, whatever the subscription's timeout: it may be ten minutes, and the slots are everybody's.
_PING: Final = 60.0
_VALIDATION: Final = 20.0  # each of the two ways


class Busy(Exception):
    """Too many probes are under way, of this host or altogether."""


class Probed(NamedTuple):
    """The outcome of a ping; `duration` in seconds."""

    result: Result
    duration: float


class Carrier(Protocol):
    """The transport, as far as probes need it."""

    def send(
        self, origin: Origin, exchange: Exchange, certificate: ClientCertificate | None = None
    ) -> object:
        """On a pooled connection, if there is one."""

    def ask(self, origin: Origin, exchange: Exchange, certificate: ClientCertificate | None = None) -> None:
        """On a connection of its own."""

    def cancel(self, exchange: Exchange) -> None:
        """Give up an exchange."""


class _Probe:
    """One request and the future that its result goes to."""

    __slots__ = ("answer", "deadline", "request")

    def __init__(self, request: bytes, deadline: float, answer: asyncio.Future[Result]) -> None:
        self.request = request
        self.deadline = deadline
        self.answer = answer

    def done(self, result: Result) -> None:
        if not self.answer.done():
            self.answer.set_result(result)


class Probes:
    """Sends probes, a bounded number at a time."""

    def __init__(self, transport: Carrier, guard: Guard, origin: str, wall: Callable[[], float]) -> None:
        """`origin` is who we are to endpoints (WebHook-Request-Origin); `wall` gives Unix seconds."""
        self._transport = transport
        self._guard = guard
        self._origin = origin
        self._wall = wall
        self._loop = asyncio.get_running_loop()
        self._under_way: Counter[Origin] = Counter()

    async def ping(self, subscription: Subscription, event: Event) -> Probed:
        """Deliver the event to it, once, whatever its status. Raises Busy."""
        request = build(subscription.request, event, int(self._wall()))
        started = self._loop.time()
        deadline = started + min(subscription.timeout, _PING)
        origin = subscription.origin
        base = Target(origin, subscription.target, origin.host_header)
        hops = 0
        while True:
            result = await self._send(subscription, request, deadline)
            if not (
                subscription.follow_redirects and isinstance(result, Response) and result.status in FOLLOWED
            ):
                break
            onward = follow(self._guard, base, request, result, hops)
            if not isinstance(onward, Hop):
                result = onward
                break
            base, request = onward
            hops += 1
        return Probed(result, self._loop.time() - started)

    async def validate(
        self, subscription: Subscription, event_id: str, challenge: str, rate: int | None = None
    ) -> Allowed | Refused:
        """Ask the endpoint whether it wants these events. `rate` is what is asked for, a minute. Raises Busy."""
        parts = subscription.request
        deadline = self._loop.time() + min(subscription.timeout, _VALIDATION)
        request = handshake_request(parts, self._origin, rate)
        verdict = judge_handshake(await self._send(subscription, request, deadline, alone=True), self._origin)
        if not isinstance(verdict, Unknown):
            return verdict
        deadline = self._loop.time() + min(subscription.timeout, _VALIDATION)
        request = challenge_request(parts, event_id, challenge, int(self._wall()))
        answer = judge_challenge(await self._send(subscription, request, deadline), challenge)
        if isinstance(answer, Refused):
            return Refused(f"{answer.detail}; {verdict.detail}")
        return answer

    async def _send(
        self, subscription: Subscription, request: bytes, deadline: float, *, alone: bool = False
    ) -> Result:
        origin = subscription.origin
        under_way = self._under_way
        if under_way[origin] >= _PER_HOST or under_way.total() >= _ALL:
            raise Busy(f"{under_way[origin]} requests like this are under way to {origin.host}")
        under_way[origin] += 1
        probe = _Probe(request, deadline, self._loop.create_future())
        try:
            send = self._transport.ask if alone else self._transport.send
            send(origin, probe, subscription.certificate)
            return await probe.answer
        except asyncio.CancelledError:
            # Nobody waits for the answer.
            self._transport.cancel(probe)
            raise
        finally:
            under_way[origin] -= 1
            if not under_way[origin]:
                del under_way[origin]
