"""Pings and validations, over the product's transport and real sockets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from orjson import loads

from dispatcher.control import probes
from dispatcher.control.probes import Busy, Probes
from dispatcher.core.event.decode import JSON_HEAD, Event
from dispatcher.core.request.handshake import Allowed, Refused
from dispatcher.core.request.netguard import Guard
from dispatcher.core.request.results import Failure, Reason, Response
from dispatcher.core.subscription.model import Status, Subscription
from dispatcher.runtime.tasks import Tasks
from tests.fakes import subscription
from tests.zoo.harness import LOOPBACK, Harness
from tests.zoo.server import Peer, Zoo

ORIGIN = "dispatcher.example"
EVENT = Event("evt_ping", "ping", None, b'{"type": "ping"}', 1_000_000_000_000, JSON_HEAD)

Answer = Callable[[str, bytes], bytes | None]


class Endpoint:
    """Answers as its script says; keeps what it was asked."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.asked: list[tuple[str, str]] = []
        self.url = ""

    async def talk(self, peer: Peer) -> None:
        while True:
            head, _, body = (await peer.request()).partition(b"\r\n\r\n")
            method = head.split()[0].decode()
            self.asked.append((method, head.decode()))
            said = self.answer(method, body)
            if said is None:
                await peer.hang()
                return
            await peer.send(said)


def ok(body: bytes = b"", *fields: str, status: str = "200 OK") -> bytes:
    lines = "".join(f"{field}\r\n" for field in fields)
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{lines}\r\n".encode() + body


class Stand:
    """Probes with an endpoint."""

    def __init__(self, zoo: Zoo, harness: Harness) -> None:
        self.zoo = zoo
        guard = Guard(LOOPBACK, https_only=False)
        self.probes = Probes(harness.transport, guard, ORIGIN, time.time)
        self.harness = harness

    async def endpoint(self, answer: Answer) -> Endpoint:
        endpoint = Endpoint(answer)
        port = await self.zoo.serve(endpoint.talk)
        endpoint.url = f"http://127.0.0.1:{port}/hook"
        return endpoint

    async def validate(self, answer: Answer, **fields: Any) -> tuple[Allowed | Refused, Endpoint]:
        endpoint = await self.endpoint(answer)
        verdict = await self.probes.validate(to(endpoint, **fields), "evt_v", "c0ffee")
        return verdict, endpoint


def to(endpoint: Endpoint, **fields: Any) -> Subscription:
    return subscription(url=endpoint.url, **fields)


@pytest.fixture
async def stand() -> AsyncIterator[Stand]:
    async with Zoo() as zoo:
        harness = Harness()
        yield Stand(zoo, harness)
        await harness.close()


async def test_a_ping_is_a_signed_delivery_whatever_the_status(stand: Stand) -> None:
    endpoint = await stand.endpoint(lambda _method, body: ok(body))
    result, duration = await stand.probes.ping(to(endpoint, status=Status.DISABLED), EVENT)
    assert result == Response(200, None, None, EVENT.body)
    assert duration > 0
    [(method, head)] = endpoint.asked
    assert method == "POST"
    assert "webhook-id: evt_ping" in head
    assert "webhook-signature: v1," in head


async def test_a_ping_follows_redirects_where_the_subscription_does(stand: Stand) -> None:
    first = True

    def answer(_method: str, _body: bytes) -> bytes:
        nonlocal first
        if not first:
            return ok(b"there")
        first = False
        return ok(b"", "Location: /moved", status="307 Temporary Redirect")

    endpoint = await stand.endpoint(answer)
    result, _ = await stand.probes.ping(to(endpoint, follow_redirects=True), EVENT)
    assert result == Response(200, None, None, b"there")
    assert [head.split()[1] for _, head in endpoint.asked] == ["/hook", "/moved"]


async def test_a_ping_to_a_forbidden_address_is_blocked_as_a_delivery_is(stand: Stand) -> None:
    endpoint = await stand.endpoint(lambda _method, _body: ok())
    harness = Harness(allow=())
    strict = Probes(harness.transport, Guard((), https_only=False), ORIGIN, time.time)
    result, _ = await strict.ping(to(endpoint), EVENT)
    verdict = await strict.validate(to(endpoint), "evt_v", "c0ffee")
    await harness.close()
    assert not endpoint.asked
    assert isinstance(verdict, Refused)
    assert isinstance(result, Failure)
    assert result.reason is Reason.BLOCKED


async def test_a_long_timeout_of_the_subscription_keeps_no_slot_for_long(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "_PING", 0.2)
    monkeypatch.setattr(probes, "_VALIDATION", 0.2)
    endpoint = await stand.endpoint(lambda _method, _body: None)
    async with asyncio.timeout(60):
        result, _ = await stand.probes.ping(to(endpoint, timeout=600.0), EVENT)
        verdict = await stand.probes.validate(to(endpoint, timeout=600.0), "evt_v", "c0ffee")
    assert isinstance(result, Failure)
    assert result.reason is Reason.TIMEOUT
    assert isinstance(verdict, Refused)


async def test_only_few_at_a_time_go_to_one_host_and_one_given_up_makes_room(stand: Stand) -> None:
    endpoint = await stand.endpoint(lambda _method, _body: None)
    tasks = Tasks()
    waiting = [tasks.start(stand.probes.ping(to(endpoint), EVENT), "ping") for _ in range(4)]
    async with asyncio.timeout(20):
        while len(endpoint.asked) < 4:
            await asyncio.sleep(0.01)
    with pytest.raises(Busy):
        await stand.probes.ping(to(endpoint), EVENT)
    await tasks.stop()
    assert all(task.cancelled() for task in waiting)
    endpoint.answer = lambda _method, _body: ok()
    result, _ = await stand.probes.ping(to(endpoint), EVENT)
    assert result == Response(200)


async def test_an_endpoint_that_allows_the_origin_passes_with_its_rate(stand: Stand) -> None:
    verdict, endpoint = await stand.validate(
        lambda _method, _body: ok(b"", f"WebHook-Allowed-Origin: {ORIGIN}", "webhook-allowed-rate: 120")
    )
    assert verdict == Allowed(120)
    [(method, head)] = endpoint.asked
    assert method == "OPTIONS"
    assert f"WebHook-Request-Origin: {ORIGIN}" in head


async def test_it_is_asked_on_a_fresh_connection_even_where_one_is_idle(stand: Stand) -> None:
    endpoint = await stand.endpoint(lambda _method, _body: ok(b"", "WebHook-Allowed-Origin: *"))
    await stand.probes.ping(to(endpoint), EVENT)
    assert await stand.probes.validate(to(endpoint), "evt_v", "c0ffee") == Allowed()


async def test_an_endpoint_that_knows_only_posts_passes_by_echoing_the_challenge(stand: Stand) -> None:
    def answer(method: str, body: bytes) -> bytes:
        if method == "OPTIONS":
            return ok(status="405 Method Not Allowed")
        return ok(loads(body)["data"]["challenge"].encode())

    verdict, endpoint = await stand.validate(answer)
    assert verdict == Allowed()
    assert [method for method, _ in endpoint.asked] == ["OPTIONS", "POST"]
    assert "webhook-signature: v1," in endpoint.asked[1][1]


async def test_an_endpoint_that_refuses_the_origin_is_not_asked_again(stand: Stand) -> None:
    verdict, endpoint = await stand.validate(
        lambda _method, _body: ok(b"", "WebHook-Allowed-Origin: other.example")
    )
    assert isinstance(verdict, Refused)
    assert len(endpoint.asked) == 1


async def test_an_endpoint_that_merely_answers_does_not_pass_and_is_told_how(stand: Stand) -> None:
    verdict, _ = await stand.validate(lambda _method, body: ok(body))
    assert isinstance(verdict, Refused)
    assert "not echoed" in verdict.detail
    assert "WebHook-Allowed-Origin" in verdict.detail
