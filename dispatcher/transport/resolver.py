"""Names to addresses, with a cache of our own.

`dns.py` asks; an answer is kept here for as long as its TTL allows. The system's resolver tells no TTLs and blocks a thread per question, and a
cache in the process saves the question altogether at thousands of attempts a second.

A name is looked up as it stands, without the search list of resolv.conf: a subscriber's `intranet` must not become the operator's
`intranet.corp.example`, and a public name must not be asked for under five suffixes first. /etc/hosts and `localhost` are answered as
everywhere else; whether an address may be contacted is the guard's business.

When no name server answers, an expired answer is used for a while longer (RFC 8767): an outage of DNS is not an outage of every endpoint. A name
that a server *says* not to exist is believed.

Rules:

1. One look-up per name at a time; everybody who asks meanwhile waits for the same one.
2. A waiter that gives up takes nothing from the others: the look-up goes on.
3. Entries that nobody asks for are dropped within `_SWEEP` of their end; there are never more than `_MAX_ENTRIES`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from dispatcher.core.request.results import Failure, Reason
from dispatcher.core.retry.wheel import Entry
from dispatcher.runtime.tasks import Tasks
from dispatcher.runtime.timers import Callback, Timers
from dispatcher.settings.groups import NetworkSettings
from dispatcher.transport.dial import LookupFailed
from dispatcher.transport.dns import Dns, DnsAnswer, NameNotFound
from dispatcher.transport.limits import MAX_ADDRESSES

_MAX_ENTRIES: Final = 20_000
_SWEEP: Final = 30.0  # seconds between two looks for expired entries, while there are any
_STALE: Final = 600.0  # seconds for which an expired answer is better than none

Ask = Callable[[str], Awaitable[Sequence[DnsAnswer]]]
"""Asks DNS: raises NameNotFound, or OSError when there was no usable answer."""


class _CachedName:
    """What is known of a name: until when to believe it, and until when it is better than nothing."""

    __slots__ = ("addresses", "expires", "failure", "stale")

    def __init__(
        self, addresses: tuple[str, ...], failure: Failure | None, expires: float, stale: float
    ) -> None:
        self.addresses = addresses
        self.failure = failure
        self.expires = expires
        self.stale = stale


class Resolver:
    """A caching resolver on one loop."""

    def __init__(
        self,
        ask: Ask,
        timers: Timers,
        tasks: Tasks,
        *,
        ttl_min: float,
        ttl_max: float,
        negative_ttl: float,
        close: Callable[[], Awaitable[None]] | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """Times in seconds; `close` is called when the resolver is closed. `clock`: not the loop's (for tests)."""
        self._ask = ask
        self._timers = timers
        self._tasks = tasks
        self._ttl_min = ttl_min
        self._ttl_max = ttl_max
        self._negative_ttl = negative_ttl
        self._close = close
        self._clock = asyncio.get_running_loop().time if clock is None else clock
        self._entries: dict[str, _CachedName] = {}
        self._asking: dict[str, asyncio.Task[_CachedName]] = {}
        self._sweep: Entry[Callback] | None = None

    @classmethod
    def from_settings(
        cls,
        network: NetworkSettings,
        timers: Timers,
        tasks: Tasks,
        clock: Callable[[], float] | None = None,
    ) -> Resolver:
        """Ask the configured servers, or those of resolv.conf. Starts nothing before the first question."""
        dns = Dns(network.dns_servers, network.dns_timeout)
        return cls(
            dns.ask,
            timers,
            tasks,
            ttl_min=network.dns_ttl_min,
            ttl_max=network.dns_ttl_max,
            negative_ttl=network.dns_negative_ttl,
            close=dns.close,
            clock=clock,
        )

    def __len__(self) -> int:
        """Names in the cache."""
        return len(self._entries)

    async def resolve(self, host: str) -> Sequence[str]:
        """Return the addresses of `host`, best first; raise LookupFailed."""
        entry = self._entries.get(host)
        if entry is None or entry.expires <= self._clock():
            asking = self._asking.get(host)
            if asking is None:
                asking = self._asking[host] = self._tasks.start(self._look_up(host), "look-up")
            entry = await asyncio.shield(asking)
        if entry.failure is not None:
            raise LookupFailed(entry.failure)
        return entry.addresses

    async def _look_up(self, host: str) -> _CachedName:
        try:
            entry = await self._answer(host)
            self._keep(host, entry)
            return entry
        finally:
            del self._asking[host]

    async def _answer(self, host: str) -> _CachedName:
        try:
            answers = await self._ask(host)
        except NameNotFound:
            answers = ()
        except OSError as error:
            old = self._entries.get(host)
            now = self._clock()
            again = now + self._negative_ttl
            if old is not None and old.addresses and now < old.stale:
                return _CachedName(old.addresses, None, again, old.stale)
            failure = Failure(Reason.DNS_FAILED, f"looking up {host} failed: {error}")
            return _CachedName((), failure, again, again)
        now = self._clock()
        if not answers:
            until = now + self._negative_ttl
            return _CachedName((), Failure(Reason.DNS_NOT_FOUND, f"{host} has no address"), until, until)
        # Records of one answer can have different TTLs; the shortest one counts.
        ttl = min(max(min(answer.ttl for answer in answers), self._ttl_min), self._ttl_max)
        addresses = tuple(dict.fromkeys(answer.address for answer in answers[:MAX_ADDRESSES]))
        return _CachedName(addresses, None, now + ttl, now + ttl + _STALE)

    def _keep(self, host: str, entry: _CachedName) -> None:
        entries = self._entries
        entries.pop(host, None)
        if len(entries) >= _MAX_ENTRIES:
            del entries[next(iter(entries))]  # the one refreshed longest ago
        entries[host] = entry
        if self._sweep is None:
            self._sweep = self._timers.at(self._clock() + _SWEEP, self._drop_expired)

    def _drop_expired(self) -> None:
        self._sweep = None
        now = self._clock()
        for host, entry in list(self._entries.items()):
            if entry.stale <= now:
                del self._entries[host]
        if self._entries:
            self._sweep = self._timers.at(now + _SWEEP, self._drop_expired)

    async def close(self) -> None:
        """Stop asking. Whoever still waits is cancelled."""
        if self._sweep is not None:
            self._timers.cancel(self._sweep)
            self._sweep = None
        for task in list(self._asking.values()):
            task.cancel()
        self._entries.clear()
        if self._close is not None:
            await self._close()
