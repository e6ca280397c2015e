"""Stores with their registries on one broker in memory, on virtual time."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from dispatcher.broker.base import TopicPartition
from dispatcher.control.documents import StoredSecret
from dispatcher.control.store import ControlStore, subscriptions_topic
from dispatcher.core.request.netguard import Guard
from dispatcher.registry.registry import Registry
from dispatcher.settings.groups import ApiSettings, Settings
from tests.fakes import MemoryBroker

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

OTHER = "whsec_" + "B" * 32

DOCUMENT = {"url": "https://hooks.example/acme", "event_types": ["a.*"], "tenant": "acme"}

TOPIC = TopicPartition(subscriptions_topic(Settings()), 0)

OLD_KEY, NEW_KEY = (b64encode(bytes([n]) * 32).decode() for n in (1, 2))


class Replica:
    """A store with its registry, on virtual time."""

    def __init__(self, broker: MemoryBroker, settings: Settings, wall: Callable[[], float]) -> None:
        guard = Guard()
        self.registry = Registry(settings, guard, {"S": SECRET}, poll=1000, wall=wall)
        self.failures: list[BaseException] = []
        self.store = ControlStore(
            settings,
            broker,
            self.registry,
            guard,
            wall=wall,
            on_failure=lambda _, error: self.failures.append(error),
            reseal_delay=1.0,
        )

    def status(self, id: str = "s") -> tuple[str, str | None] | None:  # noqa: A002 - the field's name
        found = self.registry.index.get(id)
        return None if found is None else (found.status.value, found.reason)


class World:
    def __init__(self) -> None:
        self.broker = MemoryBroker()
        self.replicas: list[Replica] = []
        self.later = 0.0  # seconds that the wall clock has jumped: idle hours cost time here too

    def wall(self) -> float:
        return 1_700_000_000 + self.later + asyncio.get_running_loop().time()

    async def replica(self, *keys: str, file: Path | None = None, **api: Any) -> Replica:
        api["secrets_keys"] = tuple(map(SecretStr, keys))
        replica = Replica(self.broker, Settings(api=ApiSettings(**api), subscriptions_file=file), self.wall)
        self.replicas.append(replica)
        await replica.registry.start()
        await replica.store.start()
        await replica.store.wait_loaded()
        return replica

    async def stop(self, replica: Replica) -> None:
        self.replicas.remove(replica)
        await replica.store.stop()
        await replica.registry.stop()
        assert not replica.failures

    def written(self) -> list[tuple[str, bytes | None]]:
        return [
            ((record.key or b"").decode(errors="replace"), record.value) for record in self.broker.log[TOPIC]
        ]


async def create(replica: Replica, id: str = "s", base: int = 0, **fields: Any) -> Any:  # noqa: A002
    return await replica.store.put(id, DOCUMENT | fields, [StoredSecret(SECRET)], base=base)
