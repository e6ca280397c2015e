"""Asking DNS: c-ares (by aiodns), without its cache.

c-ares asks over UDP, and over TCP where an answer says that it is cut off. It goes to the next server when one doesn't
answer, and remembers which ones don't, so one channel serves as long as the process lives. Since 1.31 it also keeps
answers for up to an hour, beneath `resolver.py`: then `network.dns_ttl_max` and `network.dns_negative_ttl` would say
nothing. c-ares has an option against it, `ARES_OPT_QUERY_CACHE`, for which pycares has no argument. `_uncached` sets it where
pycares hands its options to c-ares. Rejected: a channel for each question (a thread each, and a dead first server would be
waited for every time), and a DNS client of our own.

An answer is good for the shortest TTL on the way to the address: every alias (CNAME) is a record with a TTL of its own.

What bounds an answer: 64 KiB, which is all that DNS can say at once; `MAX_ALIASES` and `MAX_ADDRESSES` of it are looked at.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import aiodns
import pycares
import structlog

from dispatcher.transport.limits import MAX_ADDRESSES, MAX_ALIASES

log = structlog.get_logger(__name__)


_ARES_OPT_QUERY_CACHE: Final = 1 << 21  # ares.h
_NOT_FOUND: Final = {pycares.errno.ARES_ENOTFOUND, pycares.errno.ARES_ENODATA, pycares.errno.ARES_EBADNAME}


class DnsAnswer(NamedTuple):
    """One address of a name, and how long it is good for (seconds)."""

    address: str
    ttl: float


class NameNotFound(LookupError):
    """The name doesn't exist, or has no address."""


class Dns:
    """c-ares, made at the first question: it brings a thread and sockets."""

    __slots__ = ("_resolver", "_servers", "_timeout")

    def __init__(self, servers: Sequence[str], timeout: float) -> None:
        """`servers` as `address` or `address:port`; none: those of resolv.conf. `timeout` in seconds."""
        self._servers = servers
        self._timeout = timeout
        self._resolver: aiodns.DNSResolver | None = None

    async def ask(self, host: str) -> Sequence[DnsAnswer]:
        """Ask for the addresses of `host`. Raises NameNotFound, or OSError when there was no usable answer."""
        if self._resolver is None:
            with _uncached():
                self._resolver = aiodns.DNSResolver(
                    nameservers=list(self._servers) or None,
                    timeout=self._timeout,
                    tries=2,
                    flags=pycares.ARES_FLAG_NOSEARCH,
                )
        try:
            result = await self._resolver.getaddrinfo(host, family=socket.AF_UNSPEC, type=socket.SOCK_STREAM)
        except aiodns.error.DNSError as error:
            code = error.args[0] if error.args else None
            if code in _NOT_FOUND:
                raise NameNotFound(host) from error
            raise OSError(code, str(error.args[-1] if error.args else error)) from error
        # IPv4 and IPv6 are two questions, and both answers name the aliases.
        aliases = {alias.alias for alias in result.cnames}
        if len(aliases) > MAX_ALIASES:
            raise OSError(None, f"more than {MAX_ALIASES} aliases (CNAME) in a row")
        most = min((float(alias.ttl) for alias in result.cnames), default=float("inf"))
        nodes = result.nodes[:MAX_ADDRESSES]
        return [DnsAnswer(node.addr[0].decode("ascii"), min(float(node.ttl), most)) for node in nodes]

    async def close(self) -> None:
        """Forget what is being asked, and let go of thread and sockets."""
        if self._resolver is not None:
            await self._resolver.close()
            self._resolver = None


@contextmanager
def _uncached() -> Iterator[None]:
    """Channels made inside keep no answers."""
    module: Any = pycares
    library = module._lib
    given = module._lib = _WithoutCache(library)
    try:
        yield
    finally:
        module._lib = library
    if not given.used:
        log.warning(
            "c-ares keeps DNS answers for up to an hour: this pycares isn't known",
            version=pycares.__version__,
        )


class _WithoutCache:
    """The C library as pycares sees it, but for one function."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self.used = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._library, name)

    def ares_init_options(self, channel: Any, options: Any, mask: int) -> int:
        options.qcache_max_ttl = 0
        self.used = True
        code: int = self._library.ares_init_options(channel, options, mask | _ARES_OPT_QUERY_CACHE)
        return code
