"""Nothing is connected to without the guard's permit, by whatever way: deliveries, pings, validations, redirects."""

from __future__ import annotations

import ast
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

import dispatcher
from dispatcher.broker.base import Message
from dispatcher.control.probes import Probes
from dispatcher.core.event.decode import JSON_HEAD, Event
from dispatcher.core.request.handshake import Refused
from dispatcher.core.request.netguard import Guard
from dispatcher.core.request.results import Failure, Reason, Response, Result
from dispatcher.core.request.urls import Origin
from tests.e2e.daemon import Daemon, envelope, eventually, publish
from tests.fakes import subscription
from tests.zoo.behaviours import OK, answers, response
from tests.zoo.harness import Exchange, Harness, post
from tests.zoo.server import Peer, Zoo

Make = Callable[..., Harness]

EVENT = Event("evt_ping", "ping", None, b"{}", 1_000_000_000_000, JSON_HEAD)

INSIDE = [
    "localhost",
    "metadata",
    "intranet",
    "metadata.google.internal",
    "host.docker.internal",
    "kubernetes.default.svc",
    "api.default.svc.cluster.local",
    "printer.local",
    "router.home.arpa",
    "app.localhost",
    "db.localdomain",
    "wiki.corp",
    "nas.lan",
]


class Recorder:
    """A proxy that answers everything itself, and the targets that it was asked for."""

    def __init__(self, says: bytes = OK) -> None:
        self.says = says
        self.asked: list[str] = []

    async def __call__(self, peer: Peer) -> None:
        while True:
            request = await peer.request()
            self.asked.append(request.split(b" ", 2)[1].decode())
            await peer.send(self.says)


async def _send(harness: Harness, origin: Origin) -> Result:
    return await harness.result(origin)


async def _ask(harness: Harness, origin: Origin) -> Result:
    exchange = Exchange(post(), harness.loop.time() + 5)
    harness.transport.ask(origin, exchange)
    return await exchange.result


async def _kept_pool(harness: Harness, origin: Origin) -> Result:
    """As a lane does that has kept its pool."""
    first = Exchange(post(), harness.loop.time() + 5)
    pool = harness.transport.send(origin, first)
    assert pool is not None
    second = Exchange(post(), harness.loop.time() + 5)
    pool.send(second)
    await first.result
    return await second.result


async def _resend(harness: Harness, origin: Origin) -> Result:
    first = Exchange(post(), harness.loop.time() + 5)
    pool = harness.transport.send(origin, first)
    assert pool is not None
    second = Exchange(post(), harness.loop.time() + 5)
    pool.resend(second)
    await first.result
    return await second.result


async def _ping(harness: Harness, origin: Origin) -> Result:
    probes = Probes(harness.transport, Guard(https_only=False), "d.example", time.time)
    return (await probes.ping(subscription(url=f"{origin}/hook"), EVENT)).result


async def _validation(harness: Harness, origin: Origin) -> Result:
    probes = Probes(harness.transport, Guard(https_only=False), "d.example", time.time)
    verdict = await probes.validate(subscription(url=f"{origin}/hook"), "evt_v", "c0ffee")
    assert isinstance(verdict, Refused)
    return Failure(Reason.BLOCKED, verdict.detail)


WAYS = [_send, _ask, _kept_pool, _resend, _ping, _validation]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__.strip("_"))
async def test_a_name_of_the_inside_never_goes_to_the_proxy(
    way: Callable[[Harness, Origin], Awaitable[Result]], zoo: Zoo, make: Make
) -> None:
    proxy = Recorder()
    harness = make(allow=(), network={"proxy": f"http://127.0.0.1:{await zoo.serve(proxy)}"})
    for scheme in ("http", "https"):
        for host in INSIDE:
            result = await way(harness, Origin(scheme, host, 80 if scheme == "http" else 443))
            assert isinstance(result, Failure), host
            assert result.reason is Reason.BLOCKED
            assert "blocked" in result.detail or "network.allow" in result.detail
    assert proxy.asked == []
    assert harness.transport.connections_opened == 0
    assert isinstance(await harness.result(Origin("http", "hooks.example", 80)), Response)
    assert proxy.asked == ["http://hooks.example/"]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__.strip("_"))
@pytest.mark.parametrize("proxied", [False, True])
async def test_a_guard_that_permits_nothing_keeps_every_way_from_connecting(
    way: Callable[[Harness, Origin], Awaitable[Result]],
    proxied: bool,
    zoo: Zoo,
    make: Make,
) -> None:
    port = await zoo.serve(answers(OK))
    network = {"proxy": f"http://127.0.0.1:{port}"} if proxied else {}
    harness = make(allow=(), network=network)
    result = await way(harness, Origin("http", "127.0.0.1", port))
    assert isinstance(result, Failure)
    assert result.reason is Reason.BLOCKED
    assert harness.transport.connections_opened == 0


async def test_a_redirect_through_the_proxy_stays_on_its_origin(zoo: Zoo, make: Make) -> None:
    for location in (
        "http://localhost/",
        "http://metadata.google.internal/x",
        "//intranet/",
        "http://10.0.0.1/",
    ):
        proxy = Recorder(response(b"", b"Location: " + location.encode(), status=b"307 Elsewhere"))
        harness = make(allow=(), network={"proxy": f"http://127.0.0.1:{await zoo.serve(proxy)}"})
        probes = Probes(harness.transport, Guard(https_only=False), "d.example", time.time)
        leads = subscription(url="http://hooks.example/in", follow_redirects=True)
        result, _ = await probes.ping(leads, EVENT)
        assert isinstance(result, Failure)
        assert result.reason is Reason.BLOCKED
        assert proxy.asked == ["http://hooks.example/in"]


def test_sockets_to_endpoints_are_made_in_one_place() -> None:
    """What else connects is the broker's, the API's own client, the demo's, and the supervisor's to its workers: none of
    them takes a subscriber's URL."""
    makes = {"create_connection", "open_connection", "sock_connect", "create_unix_connection", "start_tls"}
    found = set()
    root = Path(dispatcher.__file__).parent
    for file in root.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in makes:
                found.add(str(file.relative_to(root)))
    assert {name for name in found if not name.startswith(("broker/", "commands/", "workers/"))} == {
        "transport/dial.py"
    }


async def test_deliveries_of_the_daemon_to_names_of_the_inside_never_reach_its_proxy(
    tmp_path: Path, zoo: Zoo
) -> None:
    proxy = Recorder()
    port = await zoo.serve(proxy)
    subscriptions = [
        {"id": f"in_{number}", "url": f"http://{host}/hook", "event_types": ["test.*"]}
        for number, host in enumerate(INSIDE)
    ]
    subscriptions.append({"id": "out", "url": "http://hooks.example/hook", "event_types": ["test.*"]})
    broker = f"sqlite:///{tmp_path}/log.db"
    network = {"proxy": f"http://127.0.0.1:{port}", "allow": []}
    daemon = Daemon(tmp_path, broker, subscriptions, network=network)
    _, event = envelope(0)
    await publish(broker, [Message("events", event)])
    try:
        await daemon.start()
        await eventually(lambda: len(daemon.log_lines("attempt failed")) >= len(INSIDE), within=60)
        await eventually(lambda: proxy.asked == ["http://hooks.example/hook"], within=60)
        for line in daemon.log_lines("attempt failed"):
            assert line["result"].startswith("blocked")
        assert await daemon.stop() == 0
    finally:
        await daemon.kill()
    assert proxy.asked == ["http://hooks.example/hook"]
