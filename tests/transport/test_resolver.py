"""DNS: the cache against scripted answers, and c-ares against a name server of our own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import cast

import pytest

from dispatcher.core.request.results import Failure, Reason
from dispatcher.core.retry.wheel import Entry
from dispatcher.runtime.tasks import Tasks
from dispatcher.runtime.timers import Timers
from dispatcher.transport import resolver as module
from dispatcher.transport.dial import LookupFailed
from dispatcher.transport.dns import DnsAnswer, NameNotFound
from dispatcher.transport.resolver import Resolver


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
