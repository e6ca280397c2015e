"""How much of the API's callers there may be at a time: connections, requests, and how slowly they may send.

The API is a server of strangers in the process that delivers. What a caller may take is bounded here, before anybody knows who it is:

- **Connections**, in all and of one address. At the bound in all, the connection that has been without a request for longest makes room.
- **Requests** a second, of one address and of one key: a token bucket each, which holds two seconds' worth.
- **Time**, by a rate: a head or a body that comes more slowly than `MinimumRate` says is given up.

An address is one of IPv4, or a /64 of IPv6: whoever has one of these has them all.
"""

from __future__ import annotations

import ipaddress
import math
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Final, NamedTuple

MAX_BUCKETS: Final = 10_000
"""Addresses, or keys, whose requests are counted at a time."""
MAX_FORWARDED: Final = 16
"""Entries of X-Forwarded-For that are looked at."""
_SHARE_OF_DESCRIPTORS: Final = 4
_BURST: Final = 2.0  # seconds' worth of requests that may come at once

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class MinimumRate(NamedTuple):
    """The least that a caller sends: something every `grace` seconds, and `rate` bytes a second beyond that."""

    grace: float
    rate: float

    def deadline(self, before: float, size: int, now: float) -> float:
        """The deadline after `size` bytes more have come. What was sent faster than the rate is worth `grace` seconds at the most."""
        return min(before + size / self.rate, now + self.grace)


MAX_LINE: Final = 8 << 10
"""Bytes of a request's address."""
MAX_FIELD: Final = MAX_LINE - 1
"""Bytes of a header field. Not as many as of an address: only the number in the parser's error tells which of the two was too long."""
MAX_FIELDS: Final = 128
HEAD: Final = MinimumRate(10.0, 1024.0)
"""From the first byte of a request to the end of its head."""
BODY: Final = MinimumRate(10.0, 8192.0)
"""From the end of the head to the end of the body."""


class TrustedProxies:
    """The proxies in front of the API, whose word on who calls is taken (`http.trusted_proxies`)."""

    def __init__(self, networks: Sequence[str]) -> None:
        """CIDRs. Raises ValueError."""
        self._networks: tuple[Network, ...] = tuple(ipaddress.ip_network(network) for network in networks)

    def __contains__(self, address: object) -> bool:
        if not self._networks or not isinstance(address, str):
            return False
        try:
            ip = ipaddress.ip_address(address)
        except ValueError:
            return False
        if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        return any(ip.version == network.version and ip in network for network in self._networks)

    def caller(self, peer: str, forwarded: Sequence[str]) -> str:
        """The address of the caller: the peer's, or where that is a proxy, what it says.

        `forwarded` are the values of X-Forwarded-For. Each proxy adds the address that it was called from at the end. So the last
        one that no trusted proxy has is the caller's; what stands before it anybody may have written.
        """
        caller = peer
        if peer not in self:
            return caller
        entries = ",".join(forwarded[-MAX_FORWARDED:]).split(",")
        for entry in reversed(entries[-MAX_FORWARDED:]):
            address = _address(entry.strip())
            if address is None:
                break
            caller = address
            if address not in self:
                break
        return caller


def _address(text: str) -> str | None:
    """An address, perhaps with a port."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return None


class ConnectionLimit:
    """Counts connections: `total` in all, `of_one` of each address."""

    def __init__(self, total: int, of_one: int) -> None:
        self.total = total
        self.of_one = of_one
        self.open = 0
        self._by_address: Counter[str] = Counter()

    def full_for(self, address: str) -> bool:
        """Whether the address has as many as it may."""
        return self._by_address[address] >= self.of_one

    @property
    def full(self) -> bool:
        """Whether there are as many as there may be."""
        return self.open >= self.total

    def opened(self, address: str | None) -> None:
        """Count one. `address` None: of a proxy, which many stand behind."""
        self.open += 1
        if address is not None:
            self._by_address[address] += 1

    def closed(self, address: str | None) -> None:
        """It is gone."""
        self.open -= 1
        if address is not None:
            self._by_address[address] -= 1
            if not self._by_address[address]:
                del self._by_address[address]


class RequestLimit:
    """A token bucket for each caller: `rate` requests a second, two seconds' worth at once."""

    def __init__(self, rate: float, clock: Callable[[], float]) -> None:
        """`clock` gives seconds."""
        self.rate = rate
        self._most = max(1.0, rate * _BURST)
        self._clock = clock
        self._full_at: dict[str, float] = {}  # when the caller's bucket is full again

    def take(self, caller: str) -> float:
        """Count a request: 0, or the seconds after which the caller may send it."""
        now = self._clock()
        full_at = max(self._full_at.pop(caller, now), now)
        missing = (full_at - now) * self.rate  # tokens that the bucket lacks
        if missing + 1.0 > self._most + 1e-9:
            self._full_at[caller] = full_at
            return (missing + 1.0 - self._most) / self.rate
        if len(self._full_at) >= MAX_BUCKETS:
            self._make_room(now)
        self._full_at[caller] = full_at + 1.0 / self.rate
        return 0.0

    def _make_room(self, now: float) -> None:
        """Forget callers whose buckets are full; where there are none, a sixteenth, those heard of longest ago."""
        self._full_at = {caller: full_at for caller, full_at in self._full_at.items() if full_at > now}
        if len(self._full_at) >= MAX_BUCKETS:
            for caller in list(islice(self._full_at, MAX_BUCKETS // 16 + 1)):
                del self._full_at[caller]

    def __len__(self) -> int:
        return len(self._full_at)


class ApiLimits(NamedTuple):
    """What the settings say about the API's callers."""

    max_connections: int = 1000
    max_connections_per_address: int = 256
    requests_per_address: float = 1000.0
    requests_per_key: float = 1000.0
    trusted_proxies: tuple[str, ...] = ()


def connections_within(limit: int, descriptors: int) -> int:
    """How many connections the API may have: `limit`, or a quarter of the process's file descriptors. Deliveries need the others."""
    if descriptors <= 0 or math.isinf(descriptors):
        return limit
    return max(1, min(limit, descriptors // _SHARE_OF_DESCRIPTORS))
