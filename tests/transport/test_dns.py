"""Questions to real name servers, over UDP and TCP."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import cast

import pytest

from dispatcher.core.request.results import Failure, Reason, Response
from dispatcher.core.request.urls import Origin
from dispatcher.runtime.tasks import Tasks
from dispatcher.runtime.timers import Timers
from dispatcher.settings.groups import NetworkSettings
from dispatcher.transport.limits import MAX_ADDRESSES, MAX_ALIASES
from dispatcher.transport.resolver import Resolver
from tests.transport.test_resolver import Clock, failure
from tests.zoo.behaviours import OK, answers
from tests.zoo.dns import NameServer, Record, address, alias
from tests.zoo.harness import Harness
from tests.zoo.server import Zoo


@pytest.fixture
def clock() -> Clock:
    return Clock()


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
    network = NetworkSettings.model_validate({"dns_servers": [server.address], "dns_timeout": "1s"})
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
    harness = make(allow=("127.0.0.0/8",), network={"dns_servers": [server.address], "dns_timeout": "1s"})
    assert isinstance(await harness.result(Origin("http", "four.example", port)), Response)
    assert isinstance(await harness.result(Origin("http", "both.example", port)), Response)
    assert isinstance(await harness.result(Origin("http", "localhost", port)), Response)
    for host, why in {"inside.example": Reason.BLOCKED, "gone.example": Reason.DNS_NOT_FOUND}.items():
        result = await harness.result(Origin("http", host, port))
        assert isinstance(result, Failure)
        assert result.reason is why
