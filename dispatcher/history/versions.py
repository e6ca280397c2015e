"""What subscriptions were, from when on: fed to the store, so that an event can be explained by what held when it was published.

The registry tells of every change (`Registry.watchers`), of the API's and of the file's; what it holds already when this starts is looked at
once. Versions are kept by the time of the change, where that is known.

Rules:

1. What isn't noted yet is in `_waiting`, in order. A store that is away delays the notes and loses none, as far as `_MOST` of them.
2. A change is noted with the time at which it was seen. What was there before this process was is noted with the time of its own record,
   or as of now where it has none.
3. Nothing waits for any of this.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec
import structlog

from dispatcher.core.subscription.model import Subscription
from dispatcher.history.base import DELETED, HistoryError, HistoryStore, SubscriptionVersion
from dispatcher.history.bounds import storable
from dispatcher.history.explanation import VersionDocument
from dispatcher.registry.registry import Registry
from dispatcher.runtime.backoff import Backoff

log = structlog.get_logger(__name__)

_AT_ONCE: Final = 500  # versions of one write
_SLICE: Final = 500  # subscriptions looked at between two turns of the loop
_MOST: Final = 200_000  # versions that wait for the store, beyond which everything is looked at again

_encoder: Final = msgspec.json.Encoder()


class Origins(NamedTuple):
    """When a subscription was made, and when it was changed last. Unix ms; None where that is not known."""

    created_ms: int | None
    updated_ms: int | None


class VersionKeeper:
    """Follows the registry and fills the store."""

    def __init__(
        self,
        store: HistoryStore,
        registry: Registry,
        origins: Callable[[str], Origins],
        *,
        clock: Callable[[], float],
    ) -> None:
        """`origins` tells of a subscription of the API when it was made; `clock` gives Unix seconds."""
        self._store = store
        self._registry = registry
        self._origins = origins
        self._clock = clock
        self._waiting: list[SubscriptionVersion] = []
        self._some = asyncio.Event()
        self._everything = True

    async def run(self) -> None:
        """Follow the registry until cancelled. The registry is loaded, and the store will be open some time."""
        self._registry.watchers.append(self._changed)
        backoff = Backoff(longest=15.0)
        try:
            while True:
                self._some.clear()
                try:
                    await self._keep()
                except HistoryError as error:
                    if not backoff.failures:
                        log.warning(
                            "versions of subscriptions can't be kept yet, trying again", error=str(error)
                        )
                    await asyncio.sleep(backoff.failed())
                    continue
                backoff.succeeded()
                await self._some.wait()
        finally:
            self._registry.watchers.remove(self._changed)

    def _changed(self, old: Subscription | None, new: Subscription | None) -> None:
        """A subscription is another one now, or gone; without any of the two whichever. Called by the registry."""
        if (old is None and new is None) or len(self._waiting) >= _MOST:
            self._everything = True
            self._waiting.clear()
        elif not self._everything:
            now_ms = self._now_ms()
            if new is not None:
                self._waiting.append(_version(new, now_ms, self._origins(new.id).created_ms))
            elif old is not None:
                self._waiting.append(_gone(old.id, old.tenant, now_ms))
        self._some.set()

    async def _keep(self) -> None:
        if self._everything:
            try:
                await self._look()
            except HistoryError:
                self._everything = True
                raise
        while self._waiting:
            some = self._waiting[:_AT_ONCE]
            await self._store.note_versions(some)
            del self._waiting[: len(some)]
            await asyncio.sleep(0)

    async def _look(self) -> None:
        """Note everything that is there, and what is gone of what was known to be."""
        await self._store.positions()  # raises while the store is not open
        self._everything = False
        now_ms = self._now_ms()
        index = self._registry.index
        found = []
        for number, subscription in enumerate(list(index), 1):
            found.append(self._found(subscription, now_ms))
            if number % _SLICE == 0:
                await asyncio.sleep(0)
        after = ""
        while known := await self._store.present_subscriptions(after, _AT_ONCE):
            found.extend(
                _gone(version.subscription_id, version.tenant, now_ms)
                for version in known
                if index.get(version.subscription_id) is None
            )
            after = known[-1].subscription_id
        self._waiting[:0] = found  # before what has changed meanwhile

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    def _found(self, subscription: Subscription, now_ms: int) -> SubscriptionVersion:
        """One that was there before it was looked at."""
        origins = self._origins(subscription.id)
        runtime = self._registry.runtime(subscription.id)
        times = [now_ms if origins.updated_ms is None else origins.updated_ms]
        if runtime is not None and runtime.since is not None:
            times.append(round(runtime.since * 1000))
        return _version(subscription, min(now_ms, max(times)), origins.created_ms)


def _version(subscription: Subscription, since_ms: int, created_ms: int | None) -> SubscriptionVersion:
    document = VersionDocument(subscription.event_types, subscription.reason, created_ms)
    return SubscriptionVersion(
        storable(subscription.id, 64),
        since_ms,
        None if subscription.tenant is None else storable(subscription.tenant, 256),
        subscription.status.value,
        _encoder.encode(document).decode(),
    )


def _gone(id_: str, tenant: str | None, since_ms: int) -> SubscriptionVersion:
    return SubscriptionVersion(
        storable(id_, 64), since_ms, None if tenant is None else storable(tenant, 256), DELETED, "{}"
    )
