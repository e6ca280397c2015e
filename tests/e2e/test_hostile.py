"""Strangers, tenants' keys and endpoints that mean no good, against the real daemon: others' deliveries go on.

Counts are compared, not times: how many deliveries end while the attackers get so many answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.api.real import made, running
from tests.api.serving import KEY as REAL_KEY
from tests.e2e.daemon import Endpoint, eventually
from tests.e2e.hostile import Caller, HostileDaemon, QuickEndpoint, events, eventually_all
from tests.zoo.behaviours import EARLY, floods, sends_tickets
from tests.zoo.server import Script, Zoo, authority

KEY = "operators-key-" + "o" * 32
DESCRIPTORS = 128
_numbers = itertools.count()


@pytest.fixture(scope="module")
def endpoint() -> Iterator[QuickEndpoint]:
    with QuickEndpoint() as made_:
        yield made_


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, endpoint: QuickEndpoint) -> Iterator[HostileDaemon]:
    made_ = HostileDaemon(
        tmp_path_factory.mktemp("hostile"),
        endpoint,
        KEY,
        api={"operational_events": False, "publish_validation": "warn", "event_types": "open"},
        # What a tenant may publish would keep these attackers from what is to be shown.
        quotas={"events_per_second": 1_000_000, "bytes_per_second": "1GiB"},
        http={"requests_per_second": 1_000_000},
    )
    made_.start_with(DESCRIPTORS)
    yield made_
    made_.end()


@pytest.fixture
async def operator(daemon: HostileDaemon) -> AsyncIterator[Caller]:
    await daemon.ready()
    caller = Caller(daemon.port, KEY)
    yield caller
    caller.close()


def ids(count: int) -> list[str]:
    return [f"evt_{next(_numbers)}" for _ in range(count)]


async def publish(operator: Caller, count: int) -> list[str]:
    """Publish so many honest events; their ids."""
    made_ = ids(count)
    while (answer := await operator("POST", "/v1/events", events(made_)))[0] == 503:
        await asyncio.sleep(0.1)  # deliveries come first
    assert answer[0] == 202, answer
    return made_


async def key_of(operator: Caller, tenant: str) -> str:
    wanted = {"name": tenant, "scope": "tenant", "tenant": tenant, "capabilities": ["publish", "read"]}
    status, body = await operator("POST", "/v1/keys", orjson.dumps(wanted))
    assert status == 201, body
    return str(orjson.loads(body)["secret"])


async def attempts(daemon: HostileDaemon) -> Counter[str]:
    """How attempts have ended."""
    _, body = await daemon.get("/metrics")
    found: Counter[str] = Counter()
    for line in body.decode().splitlines():
        if line.startswith("dispatcher_attempts_total{"):
            labels, _, value = line.rpartition(" ")
            found[labels.partition('outcome="')[2].partition('"')[0]] += int(float(value))
    return +found


async def test_idle_connections_without_a_key_leave_descriptors_to_deliveries(
    daemon: HostileDaemon, operator: Caller, endpoint: QuickEndpoint
) -> None:
    """Three times as many connections as the process has descriptors, and none of them says anything."""
    idle: list[asyncio.StreamWriter] = []
    readers: list[asyncio.StreamReader] = []
    for _ in range(DESCRIPTORS * 3):
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", daemon.port)
            idle.append(writer)
            readers.append(reader)
    assert len(idle) > DESCRIPTORS * 2
    published = await publish(operator, 500)
    await eventually_all(endpoint, published, lambda: daemon.running)
    assert (await attempts(daemon)).keys() == {"delivered"}
    assert daemon.descriptors() < DESCRIPTORS * 3 // 4, "there is room for connections to endpoints"
    for writer in idle:
        writer.close()


async def test_uploads_that_hold_back_their_last_byte_refuse_nobody_else(
    daemon: HostileDaemon, operator: Caller, endpoint: QuickEndpoint
) -> None:
    """Eight of 8 MiB with one tenant's key, which is all the room that there is for events under way."""
    slow_key, other_key = await key_of(operator, "slow"), await key_of(operator, "other")
    size = 8 << 20
    body = b"[" + b" " * (size - 2)
    uploads = [Caller(daemon.port, slow_key) for _ in range(8)]
    await asyncio.gather(*(upload.begin("POST", "/v1/events", body, size) for upload in uploads))
    try:
        # What there is no room for is told so; the others are waited for.
        stalled = [asyncio.get_running_loop().create_task(upload.answer()) for upload in uploads]
        await eventually(lambda: sum(task.done() for task in stalled) >= 5, 60)
        assert {task.result()[0] for task in stalled if task.done()} <= {429, 0}
        assert sum(not task.done() for task in stalled) >= 1
        other = Caller(daemon.port, other_key)
        for _ in range(5):
            answer = await other("POST", "/v1/events", events(ids(10)))
            assert answer[0] == 202, answer
        other.close()
        published = await publish(operator, 100)
        await eventually_all(endpoint, published, lambda: daemon.running)
        assert sum(not task.done() for task in stalled) >= 1, "they were there all the time"
    finally:
        for task in stalled:
            task.cancel()
        await asyncio.gather(*stalled, return_exceptions=True)
        for upload in uploads:
            upload.close()


Attack = Callable[[Caller], Awaitable[tuple[int, bytes]]]
MILLION = b"[" + b",".join([b"123456"] * 1_000_000) + b"]"
BATCH = events([f"nobody_{number}" for number in range(1000)], "unwanted.event")
ATTACKS: dict[str, tuple[Attack, int, int]] = {
    # What is sent again and again, the status that it gets, and how many deliveries end for each answer, at the least.
    "a refused array of a million integers": (lambda call: call("POST", "/v1/events", MILLION), 422, 80),
    "batches of a thousand events": (lambda call: call("POST", "/v1/events", BATCH), 202, 100),
    "the metrics": (lambda call: call("GET", "/metrics"), 200, 2),
    "the documentation": (lambda call: call("GET", "/docs/swagger-ui-bundle.js"), 200, 10),
}


@pytest.mark.parametrize("name", ATTACKS)
async def test_deliveries_go_on_beside_callers_that_take_the_loop(
    daemon: HostileDaemon, operator: Caller, endpoint: QuickEndpoint, name: str
) -> None:
    """Four of them, each as fast as it gets answers. What they get while no delivery is due takes nothing from any, and doesn't count."""
    attack, expected, least = ATTACKS[name]
    key = await key_of(operator, "attacker")
    before = len(endpoint.ids)
    waited = await daemon.total("api_waits_total")
    endpoint.hold()
    published: list[str] = []
    for _ in range(4):
        published += await publish(operator, 1000)
    over = begun = False
    statuses: Counter[int] = Counter()
    beside = 0  # answers to what was asked or answered while deliveries were due and the endpoint answered

    def due() -> bool:
        return begun and len(endpoint.ids) - before < len(published)

    async def attacker() -> None:
        nonlocal beside
        call = Caller(daemon.port, key)
        while not over:
            counts = due()
            status, _ = await attack(call)
            statuses[status] += 1
            beside += (counts or due()) and status == expected
        call.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(attacker())
        await eventually(lambda: statuses.total() >= 4, 60)
        begun = True
        endpoint.release()
        for _ in range(3):
            published += await publish(operator, 1000)
        await eventually_all(endpoint, published, lambda: daemon.running)
        over = True
    delivered = len(endpoint.ids) - before
    waited = await daemon.total("api_waits_total") - waited
    print(f"{name}: {delivered} deliveries beside {beside} of {dict(statuses)}, {waited:.0f} waited")
    assert beside > 0, "they are slowed down, not locked out"
    assert set(statuses) <= {expected, 429, 503, 0}, statuses
    assert delivered >= least * beside
    assert waited > 0


async def test_a_schema_whose_keyword_would_take_seconds_is_not_compared(
    daemon: HostileDaemon, operator: Caller, endpoint: QuickEndpoint
) -> None:
    schema = {"schema": {"properties": {"n": {"items": {"multipleOf": 0.01}}}}}
    status, body = await operator("PUT", "/v1/event-types/honest.large", orjson.dumps(schema))
    assert status in (200, 201), body
    (id_,) = ids(1)
    numbers = b"[" + b",".join([b"1e300"] * 50_000) + b"]"
    event = b'{"type":"honest.large","id":"' + id_.encode() + b'","data":{"n":' + numbers + b"}}"
    status, body = await operator("POST", "/v1/events", event)
    assert status == 202, body
    (warning,) = orjson.loads(body)["events"][0]["warnings"]
    assert "too long" in warning["message"]
    await eventually_all(endpoint, [id_], lambda: daemon.running)


async def test_a_subscriptions_file_that_is_none_is_refused_and_the_next_one_is_taken(
    daemon: HostileDaemon, operator: Caller, endpoint: QuickEndpoint
) -> None:
    """A FIFO, which would be waited for, and a file of a tebibyte."""
    file = daemon.subscriptions_file

    async def reloads(result: str) -> float:
        return await daemon.metric("registry_reloads_total", f'result="{result}"')

    async def refused(put: Callable[[Path], None], said: str) -> None:
        failed = await reloads("failed")
        new = file.with_suffix(".other")
        put(new)
        new.replace(file)
        async with asyncio.timeout(60):
            while await reloads("failed") == failed:
                await asyncio.sleep(0.1)
        assert said in daemon.log()
        await eventually_all(endpoint, await publish(operator, 20), lambda: daemon.running)

    def huge(path: Path) -> None:
        with path.open("wb") as opened:
            opened.truncate(1 << 40)

    await refused(os.mkfifo, "is a FIFO")
    await refused(huge, "is larger than 512 MiB")
    fine = await reloads("ok")
    daemon.write_subscriptions(
        [{"id": "honest", "url": endpoint.url, "event_types": ["honest.*", "added.*"]}]
    )
    async with asyncio.timeout(60):
        while await reloads("ok") == fine:
            await asyncio.sleep(0.1)
    added = ids(1)
    assert (await operator("POST", "/v1/events", events(added, "added.event")))[0] == 202
    await eventually_all(endpoint, added, lambda: daemon.running)


ENDLESS: dict[str, tuple[Script, bool, str]] = {
    # The endpoint, whether it speaks TLS, and what the attempt ends with.
    "hints without end": (floods(b"", EARLY * 999), False, "protocol_error"),
    "tickets without end": (sends_tickets(2000), True, "tls_failed"),
}


@pytest.mark.parametrize("name", ENDLESS)
async def test_what_an_endpoint_sends_without_end_ends_the_attempt_and_nothing_else(
    tmp_path: Path, name: str
) -> None:
    script, secure, expected = ENDLESS[name]
    await _ends(tmp_path, script, "https" if secure else "http", expected, proxied=False)


async def test_what_a_proxy_answers_without_end_ends_the_attempt(tmp_path: Path) -> None:
    script = floods(b"", b"HTTP/1.1 100 Continue\r\n\r\n")
    await _ends(tmp_path, script, "https", "proxy_error", proxied=True)


async def _ends(folder: Path, script: Script, scheme: str, expected: str, *, proxied: bool) -> None:
    """A delivery to whoever runs this script ends as expected; one to another endpoint is made."""
    ca_file = folder / "ca.pem"
    authority().cert_pem.write_to_path(str(ca_file))
    async with Zoo() as zoo, Endpoint() as well:
        port = await zoo.serve(script)
        network: dict[str, Any] = {"allow": ["127.0.0.0/8"], "https_only": False, "ca_file": str(ca_file)}
        if proxied:
            network["proxy"] = f"http://127.0.0.1:{port}"
        url = f"{scheme}://127.0.0.1:{port}/"
        async with running(folder, REAL_KEY, network=network, delivery={"breaker_threshold": 0}) as (
            call,
            app,
        ):
            new = {"event_types": ["a"], "timeout": "60s", "retry": {"schedule": []}}
            endless = made(await call("POST", "/v1/subscriptions", {**new, "url": url}))
            id_ = endless["subscription"]["id"]
            pinged = (await call("POST", f"/v1/subscriptions/{id_}/ping")).json
            assert (pinged["delivered"], pinged["reason"]) == (False, expected), pinged
            made(await call("POST", "/v1/subscriptions", {**new, "url": well.url}))
            answer = await call("POST", "/v1/events", {"type": "a", "id": "evt_1"})
            assert answer.status == 202
            await eventually(lambda: app.metrics.dead_letters["exhausted"] >= 1, 60)
            assert app.metrics.attempts[expected, "none"] >= 1
            if not proxied:
                await well.received({"evt_1"}, 60)
