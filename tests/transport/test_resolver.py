"""DNS: the cache against scripted answers, and c-ares against a name server of our own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import cast

import pytest

from dispatcher.core.request.results import Failure, Reason, Response
from dispatcher.core.request.urls import Origin
from dispatcher.core.retry.wheel import Entry
from dispatcher.runtime.tasks import Tasks
from dispatcher.runtime.timers import Timers
from dispatcher.settings.groups import NetworkSettings
from dispatcher.transport import resolver as module
from dispatcher.transport.dial import LookupFailed
from dispatcher.transport.dns import DnsAnswer, NameNotFound
from dispatcher.transport.limits import MAX_ADDRESSES, MAX_ALIASES
from dispatcher.transport.resolver import Resolver
from tests.zoo.behaviours import OK, answers
from tests.zoo.dns import NameServer, Record, address, alias
from tests.zoo.harness import Harness
from tests.zoo.server import Zoo


class Dns:
    """What a name server says, by script."""

    def __init__(self) -> None:
        self.says: Sequence[DnsAnswer] | Exception = [DnsAnswer("192.0.2.1", 10.0)]
        self.asked = 0
        self.question = asyncio.Event()
        self.answered = asyncio.Event()
        self.answered.set()

    async def ask(self, host: str) -> Sequence[DnsAnswer]:
        self.asked += 1
        self.question.set()
        await self.answered.wait()
        if isinstance(self.says, Exception):
            raise self.says
        return self.says


@pytest.fixture
def dns() -> Dns:
    return Dns()


class Clock:
    """Time as the tests want it, with the timers that go by it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.due: dict[Entry[Callable[[], None]], float] = {}

    def __call__(self) -> float:
        return self.now

    def at(self, due: float, callback: Callable[[], None]) -> Entry[Callable[[], None]]:
        entry = Entry(0, callback)
        self.due[entry] = due
        return entry

    def cancel(self, entry: Entry[Callable[[], None]]) -> None:
        self.due.pop(entry, None)

    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        while self.due:
            entry = min(self.due, key=self.due.__getitem__)
            if self.due[entry] > end:
                break
            self.now = self.due.pop(entry)
            if entry.item is not None:
                entry.item()
        self.now = end


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def resolver(dns: Dns, clock: Clock) -> AsyncIterator[Resolver]:
    tasks = Tasks()
    made = Resolver(
        dns.ask, cast("Timers", clock), tasks, ttl_min=5.0, ttl_max=1000.0, negative_ttl=5.0, clock=clock
    )
    yield made
    await made.close()
    await tasks.stop()


async def failure(resolver: Resolver, host: str = "a.example") -> Failure:
    with pytest.raises(LookupFailed) as caught:
        await resolver.resolve(host)
    return caught.value.failure


async def test_an_answer_is_believed_for_its_ttl(resolver: Resolver, dns: Dns, clock: Clock) -> None:
    for _ in range(5):
        assert await resolver.resolve("a.example") == ("192.0.2.1",)
        clock.wait(1.9)
    assert dns.asked == 1
    dns.says = [DnsAnswer("192.0.2.2", 10)]
    clock.wait(0.6)
    assert await resolver.resolve("a.example") == ("192.0.2.2",)
    assert dns.asked == 2


async def test_the_ttl_is_kept_within_bounds(resolver: Resolver, dns: Dns, clock: Clock) -> None:
    dns.says = [DnsAnswer("192.0.2.1", 0.0)]
    await resolver.resolve("zero.example")
    clock.wait(4.9)
    await resolver.resolve("zero.example")
    assert dns.asked == 1
    dns.says = [DnsAnswer("192.0.2.1", 1e9), DnsAnswer("192.0.2.1", 2e9)]
    assert await resolver.resolve("long.example") == ("192.0.2.1",)
    clock.wait(999.9)
    await resolver.resolve("long.example")
    assert dns.asked == 2
    clock.wait(0.2)
    await resolver.resolve("long.example")
    assert dns.asked == 3


async def test_concurrent_questions_share_one_query(resolver: Resolver, dns: Dns) -> None:
    found = await asyncio.gather(*(resolver.resolve("a.example") for _ in range(50)))
    assert found == [("192.0.2.1",)] * 50
    assert dns.asked == 1


async def test_a_waiter_that_gives_up_takes_nothing_from_the_others(resolver: Resolver, dns: Dns) -> None:
    dns.answered.clear()
    loop = asyncio.get_running_loop()
    first, second = (loop.create_task(resolver.resolve("a.example")) for _ in range(2))
    await dns.question.wait()
    first.cancel()
    dns.answered.set()
    assert await second == ("192.0.2.1",)
    assert dns.asked == 1


async def test_what_does_not_exist_is_remembered_for_a_while(
    resolver: Resolver, dns: Dns, clock: Clock
) -> None:
    dns.says = NameNotFound("a.example")
    for _ in range(3):
        assert (await failure(resolver)).reason is Reason.DNS_NOT_FOUND
        clock.wait(1.6)
    assert dns.asked == 1
    dns.says = []
    clock.wait(0.3)
    assert (await failure(resolver)).reason is Reason.DNS_NOT_FOUND
    dns.says = [DnsAnswer("192.0.2.1", 1)]
    clock.wait(5.1)
    assert await resolver.resolve("a.example") == ("192.0.2.1",)


async def test_an_outage_of_dns_is_told_and_remembered_for_a_while(
    resolver: Resolver, dns: Dns, clock: Clock
) -> None:
    dns.says = OSError(11, "could not contact DNS servers")
    found = await failure(resolver)
    assert found.reason is Reason.DNS_FAILED
    assert "could not contact DNS servers" in found.detail
    clock.wait(4.9)
    await failure(resolver)
    assert dns.asked == 1
    clock.wait(0.2)
    await failure(resolver)
    assert dns.asked == 2


async def test_an_outage_of_dns_is_bridged_by_the_last_answer(
    resolver: Resolver, dns: Dns, clock: Clock
) -> None:
    await resolver.resolve("a.example")
    dns.says = OSError(11, "could not contact DNS servers")
    clock.wait(10.1)
    for _ in range(3):
        assert await resolver.resolve("a.example") == ("192.0.2.1",)
    assert dns.asked == 2  # the outage too is believed for a while
    dns.says = NameNotFound("a.example")
    clock.wait(5.1)
    assert (await failure(resolver)).reason is Reason.DNS_NOT_FOUND  # but a name that is gone is gone


async def test_an_expired_answer_is_better_than_none_for_a_while_only(
    resolver: Resolver, dns: Dns, clock: Clock
) -> None:
    await resolver.resolve("a.example")
    dns.says = OSError(11, "could not contact DNS servers")
    clock.wait(10.0 + module._STALE - 1.0)
    assert await resolver.resolve("a.example") == ("192.0.2.1",)
    clock.wait(6.0)
    assert (await failure(resolver)).reason is Reason.DNS_FAILED


async def test_the_cache_is_bounded(resolver: Resolver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_ENTRIES", 10)
    for number in range(50):
        await resolver.resolve(f"{number}.example")
    assert len(resolver) == 10


async def test_names_that_nobody_asks_for_are_forgotten(resolver: Resolver, clock: Clock) -> None:
    for number in range(50):
        await resolver.resolve(f"{number}.example")
    clock.wait(10.0 + module._STALE - 1.0)
    assert len(resolver) == 50
    clock.wait(1.0 + module._SWEEP)
    assert len(resolver) == 0
    assert not clock.due


# -- c-ares


@pytest.fixture
async def server() -> AsyncIterator[NameServer]:
    table: dict[str, list[Record] | None] = {
        "both.example": [address("127.0.0.1"), address("::1")],
        "four.example": [address("127.0.0.1"), address("127.0.0.2")],
        "inside.example": [address("10.0.0.1")],
        "empty.example": [],
        "gone.example": None,
    }
    async with NameServer(table) as server:
        yield server


@pytest.fixture
async def asking(server: NameServer) -> AsyncIterator[Callable[..., tuple[Resolver, Clock]]]:
    """Makes resolvers that ask the name server, with a clock that a test moves. What is on the wire is real."""
    made: list[tuple[Resolver, Tasks]] = []

    def make(**network: str) -> tuple[Resolver, Clock]:
        clock, tasks = Clock(), Tasks()
        settings = NetworkSettings.model_validate({"dns_servers": [server.address], **network})
        resolver = Resolver.from_settings(settings, cast("Timers", clock), tasks, clock)
        made.append((resolver, tasks))
        return resolver, clock

    yield make
    for resolver, tasks in made:
        await resolver.close()
        await tasks.stop()


Asking = Callable[..., tuple[Resolver, Clock]]


async def test_a_name_that_is_mended_is_asked_for_again_after_dns_negative_ttl(
    server: NameServer, asking: Asking
) -> None:
    resolver, clock = asking(dns_negative_ttl="1s")
    for name in ("gone.example", "empty.example"):
        assert (await failure(resolver, name)).reason is Reason.DNS_NOT_FOUND
        server.table[name] = [address("127.0.0.3")]
        clock.now += 0.9
        assert (await failure(resolver, name)).reason is Reason.DNS_NOT_FOUND
        assert server.questions(name) == 1
        clock.now += 0.2
        assert await resolver.resolve(name) == ("127.0.0.3",)
        assert server.questions(name) == 2


async def test_an_address_that_moves_is_asked_for_again_after_dns_ttl_max(
    server: NameServer, asking: Asking
) -> None:
    resolver, clock = asking(dns_ttl_max="2s")
    server.table["moves.example"] = [address("127.0.0.1", 3600)]
    assert await resolver.resolve("moves.example") == ("127.0.0.1",)
    server.table["moves.example"] = [address("127.0.0.2", 3600)]
    clock.now += 1.9
    assert await resolver.resolve("moves.example") == ("127.0.0.1",)
    assert server.questions("moves.example") == 1
    clock.now += 0.2
    assert await resolver.resolve("moves.example") == ("127.0.0.2",)
    assert server.questions("moves.example") == 2


async def test_dns_ttl_min_is_waited_for_and_no_more(server: NameServer, asking: Asking) -> None:
    resolver, clock = asking(dns_ttl_min="3s")
    server.table["short.example"] = [address("127.0.0.1", 0)]
    for wait, questions in ((0.0, 1), (2.9, 1), (0.2, 2), (3.1, 3)):
        clock.now += wait
        assert await resolver.resolve("short.example") == ("127.0.0.1",)
        assert server.questions("short.example") == questions


@pytest.mark.parametrize("shortest", range(4))
async def test_of_a_chain_of_aliases_the_shortest_ttl_counts(
    server: NameServer, asking: Asking, shortest: int
) -> None:
    resolver, clock = asking()
    ttls = [10 if place == shortest else 200 for place in range(4)]
    server.table["www.example"] = [alias("lb.example", ttls[0])]
    server.table["lb.example"] = [alias("edge.example", ttls[1])]
    server.table["edge.example"] = [alias("host.example", ttls[2])]
    server.table["host.example"] = [address("127.0.0.1", ttls[3]), address("::1", 200)]
    for wait, questions in ((0.0, 1), (9.9, 1), (0.2, 2), (9.9, 2), (0.2, 3)):
        clock.now += wait
        assert set(await resolver.resolve("www.example")) == {"127.0.0.1", "::1"}
        assert server.questions("www.example") == questions


async def test_a_chain_of_aliases_that_is_too_long_is_no_answer(server: NameServer, asking: Asking) -> None:
    resolver, _ = asking()
    for number in range(MAX_ALIASES + 1):
        server.table[f"{number}.example"] = [alias(f"{number + 1}.example")]
    server.table[f"{MAX_ALIASES + 1}.example"] = [address("127.0.0.1"), address("::1")]
    found = await failure(resolver, "0.example")
    assert found.reason is Reason.DNS_FAILED
    assert "16 aliases" in found.detail
    assert len(await resolver.resolve("1.example")) == 2


async def test_an_answer_that_is_cut_off_is_fetched_by_tcp_and_only_so_many_addresses_are_taken(
    server: NameServer, asking: Asking
) -> None:
    resolver, _ = asking()
    server.truncate = True
    everywhere = [address(f"127.0.{number // 256}.{number % 256}") for number in range(2000)]
    server.table["large.example"] = everywhere
    assert len(await resolver.resolve("large.example")) == MAX_ADDRESSES
    assert "large.example" in server.by_tcp


async def test_names_are_looked_up_at_the_configured_servers(server: NameServer, clock: Clock) -> None:
    network = NetworkSettings.model_validate({"dns_servers": [server.address], "dns_timeout": "200ms"})
    tasks = Tasks()
    resolver = Resolver.from_settings(network, cast("Timers", clock), tasks, clock)
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
    server: NameServer, zoo: Zoo, make: Callable[..., Harness]
) -> None:
    port = await zoo.serve(answers(OK))
    harness = make(allow=("127.0.0.0/8",), network={"dns_servers": [server.address], "dns_timeout": "200ms"})
    assert isinstance(await harness.result(Origin("http", "four.example", port)), Response)
    assert isinstance(await harness.result(Origin("http", "both.example", port)), Response)
    assert isinstance(await harness.result(Origin("http", "localhost", port)), Response)
    for host, why in {"inside.example": Reason.BLOCKED, "gone.example": Reason.DNS_NOT_FOUND}.items():
        result = await harness.result(Origin("http", host, port))
        assert isinstance(result, Failure)
        assert result.reason is why
