"""The transport as the engine sees it: exchanges in, results out.

`send` never queues and never waits: a pooled connection or a new one carries the exchange, within
its deadline, and its `done` is called with what came of it. Pools are made when an origin is first
used, and forgotten when nothing of theirs is left.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from pathlib import Path

import structlog

from dispatcher.core.request.netguard import Guard
from dispatcher.core.request.results import Failure, Reason
from dispatcher.core.request.urls import Origin
from dispatcher.core.subscription.model import ClientCertificate
from dispatcher.runtime.tasks import Tasks
from dispatcher.runtime.timers import Timers
from dispatcher.settings.groups import DeliverySettings, NetworkSettings
from dispatcher.transport import tls
from dispatcher.transport.base import Exchange
from dispatcher.transport.connection import Shared, report
from dispatcher.transport.dial import Dialer, Lookup
from dispatcher.transport.pool import Pool
from dispatcher.transport.proxy import Proxy
from dispatcher.transport.resolver import Resolver

log = structlog.get_logger(__name__)

_ROOM = 64  # idle connections closed at a time when there are no file descriptors left
_CLOSE_LIMIT = 2.0  # seconds for sockets to close after everything was given up

_Key = Origin | tuple[Origin, ClientCertificate]


class Transport:
    """HTTP/1.1 to everybody. One for the process; make it on the running loop."""

    def __init__(
        self,
        *,
        delivery: DeliverySettings,
        network: NetworkSettings,
        guard: Guard,
        timers: Timers,
        tasks: Tasks | None = None,
        lookup: Lookup | None = None,
    ) -> None:
        """`lookup` replaces DNS (for tests). Raises OSError when `network.ca_file` can't be read."""
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._tasks = tasks if tasks is not None else Tasks()
        self._ca_file = str(network.ca_file) if network.ca_file is not None else None
        try:
            self._default_context = tls.context(self._ca_file)
        except OSError as error:
            raise OSError(f"network.ca_file {self._ca_file}: {error.strerror or error}") from error
        self._contexts: dict[ClientCertificate, tuple[tuple[int, ...], ssl.SSLContext]] = {}
        self._lookup: Lookup = (
            lookup if lookup is not None else Resolver.from_settings(network, timers, self._tasks)
        )
        self._shared = Shared(
            loop,
            timers,
            response_cap=delivery.response_cap,
            idle_timeout=delivery.idle_timeout,
            max_age=delivery.connection_max_age,
            max_requests=delivery.connection_max_requests,
        )
        self._dialer = Dialer(
            guard=guard,
            lookup=self._lookup,
            tasks=self._tasks,
            context=self._context,
            make_room=self._make_room,
            connect_timeout=delivery.connect_timeout,
            bind=(network.bind,) if network.bind is not None else (),
            proxy=_proxy(network),
        )
        self._pools: dict[_Key, Pool] = {}
        self._closing = False

    def send(
        self, origin: Origin, exchange: Exchange, certificate: ClientCertificate | None = None
    ) -> Pool | None:
        """Carry the exchange to `origin`, with the certificate to prove ourselves with.

        Connections with different certificates are never shared. A certificate that can't be read
        is a Failure(TLS_FAILED). Returns the pool that carries it: until that is `dropped`, what goes the same way
        may be given to it at once.
        """
        pool = self._pools.get(origin if certificate is None else (origin, certificate))
        if pool is None or self._closing:
            pool = self._pool(origin, exchange, certificate)
        if pool is not None:
            pool.send(exchange)
        return pool

    def ask(self, origin: Origin, exchange: Exchange, certificate: ClientCertificate | None = None) -> None:
        """Like `send`, but on a connection of its own making: an OPTIONS request gets a HandshakeResponse."""
        pool = self._pool(origin, exchange, certificate)
        if pool is not None:
            pool.resend(exchange)

    def _pool(self, origin: Origin, exchange: Exchange, certificate: ClientCertificate | None) -> Pool | None:
        """The pool, made if need be; None when nothing is sent any more, which the exchange is told."""
        if self._closing:
            self._loop.call_soon(report, exchange, Failure(Reason.CANCELLED, "the transport is closed"))
            return None
        key: _Key = origin if certificate is None else (origin, certificate)
        pool = self._pools.get(key)
        if pool is None:
            pool = self._pools[key] = Pool(origin, certificate, self._shared, self._dialer, self._drop)
        return pool

    def cancel(self, exchange: Exchange) -> None:
        """Give the exchange up and close what carried it; its result is Failure(CANCELLED).

        Looks at every pool: nothing is kept per exchange that would be quicker. An exchange that is over is ignored.
        """
        for pool in list(self._pools.values()):
            for dial in pool.dials:
                if dial.exchange is exchange:
                    dial.fail(Failure(Reason.CANCELLED, "cancelled"))
                    return
        for connection in self._shared.open:
            if connection.exchange is exchange:
                connection.cancel("cancelled")
                return

    async def close(self, grace: float = 0.0) -> None:
        """Let what is under way end for `grace` seconds, then give it up; nothing is open afterwards."""
        self._closing = True
        shared = self._shared
        for pool in self._pools.values():
            pool.dropped = True
        self._close_idle()
        end = self._loop.time() + grace
        while self._pools and self._loop.time() < end:
            await asyncio.sleep(0.02)
            self._close_idle()
        cancelled = Failure(Reason.CANCELLED, "the dispatcher is stopping")
        for pool in list(self._pools.values()):
            for dial in list(pool.dials):
                dial.fail(cancelled)
        for connection in list(shared.open):
            if connection.exchange is not None:
                connection.cancel(cancelled.detail)
        end = self._loop.time() + _CLOSE_LIMIT
        while shared.open and self._loop.time() < end:
            await asyncio.sleep(0.01)
            for connection in list(shared.open):
                connection.abort()
        await self._lookup.close()
        await self._tasks.stop()

    def _close_idle(self) -> None:
        for pool in list(self._pools.values()):
            for connection in list(pool.idle):
                connection.close()

    # -- What metrics read

    @property
    def connections_opened(self) -> int:
        """Sockets connected since the start."""
        return self._shared.opened

    @property
    def connections_closed(self) -> int:
        """Of those, the ones that are closed."""
        return self._shared.closed

    @property
    def resent(self) -> int:
        """Exchanges sent once more because the endpoint had given up the pooled connection."""
        return self._shared.resent

    def connections(self) -> Mapping[str, int]:
        """Connections by what they do now."""
        shared = self._shared
        busy = sum(connection.exchange is not None for connection in shared.open)
        return {"idle": shared.idle, "busy": busy, "connecting": shared.dials}

    def __len__(self) -> int:
        """Pools that exist."""
        return len(self._pools)

    # -- What pools and dials ask

    def _drop(self, pool: Pool) -> None:
        key: _Key = pool.origin if pool.certificate is None else (pool.origin, pool.certificate)
        if self._pools.get(key) is pool:
            del self._pools[key]
            pool.dropped = True

    def _make_room(self) -> bool:
        """Close some idle connections: their descriptors are needed for what is under way."""
        closed = 0
        for pool in list(self._pools.values()):
            for connection in pool.idle[: _ROOM - closed]:  # those used longest ago
                connection.abort()
                closed += 1
        if closed:
            log.warning("out of file descriptors: closed idle connections", count=closed)
        return closed > 0

    def _context(self, certificate: ClientCertificate | None) -> ssl.SSLContext:
        if certificate is None:
            return self._default_context
        # Certificates are renewed in place, often daily; a look at two files is nothing beside a handshake.
        files = (certificate.cert_file, certificate.key_file or certificate.cert_file)
        changed = tuple(Path(file).stat().st_mtime_ns for file in files)
        known = self._contexts.get(certificate)
        if known is None or known[0] != changed:
            known = self._contexts[certificate] = (changed, tls.context(self._ca_file, certificate))
        return known[1]


def _proxy(network: NetworkSettings) -> Proxy | None:
    if network.proxy is None:
        return None
    password = network.proxy_password.get_secret_value() if network.proxy_password is not None else None
    return Proxy.of(network.proxy, network.proxy_username, password)
