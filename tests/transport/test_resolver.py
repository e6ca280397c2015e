"""DNS: the cache against scripted answers, and c-ares against a name server of our own."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable, Sequence

import pytest

from dispatcher.core.netguard import Origin
from dispatcher.core.results import Failure, Reason, Response
from dispatcher.settings import NetworkSettings
from dispatcher.tasks import Tasks
from dispatcher.timers import Timers
from dispatcher.transport import resolver as module
from dispatcher.transport.dial import LookupFailed
from dispatcher.transport.resolver import Answer, NotFound, Resolver
from tests.zoo.behaviours import OK, answers
from tests.zoo.harness import Harness
from tests.zoo.server import Zoo


class Dns:
    """What a name server says, by script."""

    def __init__(self) -> None:
        self.says: Sequence[Answer] | Exception = [Answer("192.0.2.1", 0.1)]
        self.asked = 0
        self.delay = 0.0

    async def ask(self, host: str) -> Sequence[Answer]:
        self.asked += 1
        await asyncio.sleep(self.delay)
        if isinstance(self.says, Exception):
            raise self.says
        return self.says


@pytest.fixture
def dns() -> Dns:
    return Dns()


@pytest.fixture
async def timers() -> AsyncIterator[Timers]:
    timers = Timers(asyncio.get_running_loop())
    yield timers
    timers.close()


@pytest.fixture
async def resolver(dns: Dns, timers: Timers) -> AsyncIterator[Resolver]:
    tasks = Tasks()
    made = Resolver(dns.ask, timers, tasks, ttl_min=0.05, ttl_max=10.0, negative_ttl=0.05)
    yield made
    await made.close()
    await tasks.stop()


async def failure(resolver: Resolver, host: str = "a.example") -> Failure:
    with pytest.raises(LookupFailed) as caught:
        await resolver.resolve(host)
    return caught.value.failure


async def test_an_answer_is_believed_for_its_ttl(resolver: Resolver, dns: Dns) -> None:
    for _ in range(5):
        assert await resolver.resolve("a.example") == ("192.0.2.1",)
    assert dns.asked == 1
    dns.says = [Answer("192.0.2.2", 0.1)]
    await asyncio.sleep(0.15)
    assert await resolver.resolve("a.example") == ("192.0.2.2",)
    assert dns.asked == 2


async def test_the_ttl_is_kept_within_bounds(resolver: Resolver, dns: Dns) -> None:
    dns.says = [Answer("192.0.2.1", 0.0)]
    await resolver.resolve("zero.example")
    await resolver.resolve("zero.example")
    assert dns.asked == 1
    dns.says = [Answer("192.0.2.1", 1e9), Answer("192.0.2.1", 2e9)]
    assert await resolver.resolve("long.example") == ("192.0.2.1",)
    assert resolver._entries["long.example"].expires <= asyncio.get_running_loop().time() + 10.0


async def test_concurrent_questions_share_one_query(resolver: Resolver, dns: Dns) -> None:
    dns.delay = 0.02
    found = await asyncio.gather(*(resolver.resolve("a.example") for _ in range(50)))
    assert found == [("192.0.2.1",)] * 50
    assert dns.asked == 1


async def test_a_waiter_that_gives_up_takes_nothing_from_the_others(resolver: Resolver, dns: Dns) -> None:
    dns.delay = 0.05
    loop = asyncio.get_running_loop()
    first, second = (loop.create_task(resolver.resolve("a.example")) for _ in range(2))
    await asyncio.sleep(0.01)
    first.cancel()
    assert await second == ("192.0.2.1",)
    assert dns.asked == 1


async def test_what_does_not_exist_is_remembered_for_a_while(resolver: Resolver, dns: Dns) -> None:
    dns.says = NotFound("a.example")
    for _ in range(3):
        assert (await failure(resolver)).reason is Reason.DNS_NOT_FOUND
    assert dns.asked == 1
    dns.says = []
    await asyncio.sleep(0.1)
    assert (await failure(resolver)).reason is Reason.DNS_NOT_FOUND
    dns.says = [Answer("192.0.2.1", 1)]
    await asyncio.sleep(0.1)
    assert await resolver.resolve("a.example") == ("192.0.2.1",)


async def test_an_outage_of_dns_is_told_and_remembered_for_a_while(resolver: Resolver, dns: Dns) -> None:
    dns.says = OSError(11, "could not contact DNS servers")
    found = await failure(resolver)
    assert found.reason is Reason.DNS_FAILED
    assert "could not contact DNS servers" in found.detail
    await failure(resolver)
    assert dns.asked == 1


async def test_an_outage_of_dns_is_bridged_by_the_last_answer(resolver: Resolver, dns: Dns) -> None:
    await resolver.resolve("a.example")
    dns.says = OSError(11, "could not contact DNS servers")
    await asyncio.sleep(0.15)
    for _ in range(3):
        assert await resolver.resolve("a.example") == ("192.0.2.1",)
    assert dns.asked == 2  # the outage too is believed for a while
    dns.says = NotFound("a.example")
    await asyncio.sleep(0.1)
    assert (await failure(resolver)).reason is Reason.DNS_NOT_FOUND  # but a name that is gone is gone


async def test_the_cache_is_bounded(resolver: Resolver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_ENTRIES", 10)
    for number in range(50):
        await resolver.resolve(f"{number}.example")
    assert len(resolver) == 10


async def test_names_that_nobody_asks_for_are_forgotten(
    resolver: Resolver, timers: Timers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SWEEP", 0.05)
    monkeypatch.setattr(module, "_STALE", 0.05)
    for number in range(50):
        await resolver.resolve(f"{number}.example")
    assert len(resolver) == 50
    await asyncio.sleep(0.4)
    assert len(resolver) == 0
    assert len(timers) == 0


# -- c-ares


class NameServer(asyncio.DatagramProtocol):
    """Answers A and AAAA from a table; None: says that the name doesn't exist; a missing name: silence."""

    def __init__(self, table: dict[str, dict[int, list[bytes]] | None]) -> None:
        self.table = table
        self.asked: list[str] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        labels, at = [], 12
        while data[at]:
            labels.append(data[at + 1 : at + 1 + data[at]].decode())
            at += 1 + data[at]
        name = ".".join(labels).lower()
        kind = struct.unpack("!H", data[at + 1 : at + 3])[0]
        self.asked.append(name)
        if name not in self.table:
            return
        records = self.table[name]
        found = (records or {}).get(kind, [])
        question = data[12 : at + 5]
        flags = 0x8180 if records is not None else 0x8183
        head = data[:2] + struct.pack("!HHHHH", flags, 1, len(found), 0, 0)
        body = b"".join(b"\xc0\x0c" + struct.pack("!HHIH", kind, 1, 30, len(raw)) + raw for raw in found)
        self.transport.sendto(head + question + body, addr)  # type: ignore[attr-defined]


@pytest.fixture
async def name_server() -> AsyncIterator[tuple[NameServer, str]]:
    table: dict[str, dict[int, list[bytes]] | None] = {
        "both.example": {1: [bytes([127, 0, 0, 1])], 28: [bytes(15) + b"\x01"]},
        "four.example": {1: [bytes([127, 0, 0, 1]), bytes([127, 0, 0, 2])]},
        "inside.example": {1: [bytes([10, 0, 0, 1])]},
        "empty.example": {},
        "gone.example": None,
    }
    transport, protocol = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: NameServer(table), ("127.0.0.1", 0)
    )
    yield protocol, f"127.0.0.1:{transport.get_extra_info('sockname')[1]}"
    transport.close()


async def test_names_are_looked_up_at_the_configured_servers(
    name_server: tuple[NameServer, str], timers: Timers
) -> None:
    server, address = name_server
    network = NetworkSettings.model_validate({"dns_servers": [address], "dns_timeout": "200ms"})
    tasks = Tasks()
    resolver = Resolver.from_settings(network, timers, tasks)
    assert set(await resolver.resolve("both.example")) == {"127.0.0.1", "::1"}
    assert set(await resolver.resolve("four.example")) == {"127.0.0.1", "127.0.0.2"}
    assert (await failure(resolver, "empty.example")).reason is Reason.DNS_NOT_FOUND
    assert (await failure(resolver, "gone.example")).reason is Reason.DNS_NOT_FOUND
    assert (await failure(resolver, "silent.example")).reason is Reason.DNS_FAILED
    assert not {name for name in server.asked if not name.endswith(".example")}  # no search list
    asked = len(server.asked)
    assert {"127.0.0.1", "::1"} >= set(await resolver.resolve("localhost"))
    assert len(server.asked) == asked
    await resolver.close()
    await tasks.stop()


async def test_the_transport_delivers_by_name_and_checks_what_the_name_resolves_to(
    name_server: tuple[NameServer, str], zoo: Zoo, make: Callable[..., Harness]
) -> None:
    port = await zoo.serve(answers(OK))
    harness = make(allow=("127.0.0.0/8",), network={"dns_servers": [name_server[1]], "dns_timeout": "200ms"})
    assert isinstance(await harness.result(Origin("http", "four.example", port)), Response)
    assert isinstance(await harness.result(Origin("http", "both.example", port)), Response)
    assert isinstance(await harness.result(Origin("http", "localhost", port)), Response)
    for host, why in {"inside.example": Reason.BLOCKED, "gone.example": Reason.DNS_NOT_FOUND}.items():
        result = await harness.result(Origin("http", host, port))
        assert isinstance(result, Failure)
        assert result.reason is why
