"""The store on real brokers: several replicas on one topic, restarts, a broker that is away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from dispatcher.broker.base import Broker
from dispatcher.broker.open import open_broker
from dispatcher.control.documents import StoredSecret
from dispatcher.control.errors import Unavailable, VersionMismatch
from dispatcher.control.store import ControlStore
from dispatcher.core.request.netguard import Guard
from dispatcher.registry.registry import Registry
from dispatcher.settings.groups import Settings
from dispatcher.topics.specs import topic_specs
from tests.broker.backends import QUICK
from tests.e2e.daemon import eventually
from tests.kafka.server import Cluster

WITHIN = 90.0
SECRET = StoredSecret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
DOCUMENT: dict[str, Any] = {"url": "https://hooks.example/acme", "event_types": ["a"]}


class Replica:
    def __init__(self, broker: Broker, settings: Settings, **options: Any) -> None:
        self.broker = broker
        self.registry = Registry(settings, Guard(), {})
        self.store = ControlStore(settings, broker, self.registry, Guard(), **options)

    async def put(self, id: str = "s", base: int = 0, **fields: Any) -> Any:  # noqa: A002 - the field's name
        return await self.store.put(id, DOCUMENT | fields, [SECRET], base=base)

    def types(self, id: str = "s") -> tuple[str, ...]:  # noqa: A002 - the field's name
        found = self.registry.index.get(id)
        return () if found is None else found.event_types


@asynccontextmanager
async def replicas(url: str, prefix: str, count: int, **options: Any) -> AsyncIterator[list[Replica]]:
    """So many stores on one topic, each with a connection of its own where the broker allows that."""
    settings = Settings.model_validate(
        {"topics": {"prefix": f"{prefix}.", "events": [f"{prefix}.events"]}, "kafka": QUICK}
    )
    brokers = [open_broker(url, settings.kafka) for _ in range(1 if url.startswith("sqlite") else count)]
    options.setdefault("write_timeout", WITHIN)  # a slow machine is no failure here
    made: list[Replica] = []
    try:
        for broker in brokers:
            await broker.connect()
        await brokers[0].ensure_topics(topic_specs(settings), create=True)
        for number in range(count):
            replica = Replica(brokers[number % len(brokers)], settings, **options)
            made.append(replica)
            await replica.store.start()
            async with asyncio.timeout(WITHIN):
                await replica.store.wait_loaded()
        yield made
    finally:
        for replica in made:
            await replica.store.stop()
        for broker in brokers:
            await broker.close()


@pytest.fixture(params=["sqlite", pytest.param("kafka", marks=pytest.mark.kafka)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "kafka":
        return f"kafka://{request.getfixturevalue('kafka')}"
    return f"sqlite:///{tmp_path}/log.db"


async def test_a_change_here_is_in_force_there_and_of_two_at_once_one_wins(
    url: str, unique: Callable[[str], str]
) -> None:
    async with replicas(url, unique("control"), 2) as (one, two):
        await one.put()
        await eventually(lambda: two.types() == ("a",), WITHIN)
        results = await asyncio.gather(
            one.put(base=1, event_types=["one"]), two.put(base=1, event_types=["two"]), return_exceptions=True
        )
        lost = [each for each in results if isinstance(each, BaseException)]
        won = [each for each in results if not isinstance(each, BaseException)]
        assert [type(each) for each in lost] == [VersionMismatch]
        wanted = tuple(won[0].document["event_types"])
        await eventually(lambda: one.types() == two.types() == wanted, WITHIN)
        one.registry.disable("s", "gone")
        await eventually(lambda: two.registry.counts()["disabled"] == 1, WITHIN)
        await two.store.enable("s")
        await eventually(lambda: one.registry.counts()["active"] == 1, WITHIN)


async def test_after_a_restart_everything_is_as_it_was(url: str, unique: Callable[[str], str]) -> None:
    prefix = unique("control")
    async with replicas(url, prefix, 2) as (one, two):
        for number in range(12):
            await (one, two)[number % 2].put(f"s{number:02}")
        await eventually(lambda: len(one.store) == len(two.store) == 12, WITHIN)
        await one.put("s03", base=1, event_types=["changed"])
        await two.store.delete("s04", base=1)
        await one.store.set_disabled("s05", "gone")
        await eventually(lambda: two.types("s03") == ("changed",) and len(one.store) == 11, WITHIN)
        before = [one.store.get(id_) for id_ in one.store.ids()]
    async with replicas(url, prefix, 1) as (three,):
        assert [three.store.get(id_) for id_ in three.store.ids()] == before
        assert three.registry.counts() == {"active": 10, "paused": 0, "pending": 0, "disabled": 1}


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_broker_that_is_away_is_told_and_writes_go_on_when_it_is_back(
    kafka_cluster: Callable[..., Cluster], unique: Callable[[str], str]
) -> None:
    cluster = kafka_cluster()
    async with replicas(f"kafka://{cluster.bootstrap}", unique("control"), 1, write_timeout=5.0) as (one,):
        async with asyncio.timeout(WITHIN):
            while one.store.get("s") is None:
                with contextlib.suppress(Unavailable, VersionMismatch):
                    await one.put()
        await asyncio.to_thread(cluster.nodes[0].kill)
        with pytest.raises(Unavailable):
            await one.put(base=1, event_types=["b"])
        one.registry.disable("s", "gone")
        assert one.registry.counts()["disabled"] == 1
        await asyncio.to_thread(cluster.nodes[0].start)

        async def written() -> bool:
            stored = one.store.get("s")
            assert stored is not None
            try:
                await one.put(base=stored.version, event_types=["c"])
            except (Unavailable, VersionMismatch):
                return False
            return True

        async with asyncio.timeout(WITHIN):
            while not await written():
                await asyncio.sleep(0.2)
        assert one.types() == ("c",)
        assert one.registry.counts()["disabled"] == 1
        # And the disabling was kept: it is what the topic says.
        await one.store.set_disabled("s", "gone")
