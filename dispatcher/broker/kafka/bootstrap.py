"""Which of the bootstrap servers lets us in, and why none does: the library's own bootstrap hides the reason."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping, Sequence
from typing import Any

import structlog
from aiokafka import errors
from aiokafka.client import AIOKafkaClient
from aiokafka.conn import collect_hosts, create_conn
from aiokafka.protocol.metadata import MetadataRequest

from dispatcher.broker.base import BrokerError, BrokerRefused, BrokerUnavailable
from dispatcher.broker.kafka.client import mapped, milliseconds
from dispatcher.broker.kafka.diagnosis import mismatch, spoken, unreachable
from dispatcher.runtime.tasks import Tasks
from dispatcher.settings.groups import KafkaSettings

log = structlog.get_logger(__name__)

CONNECT_TIMEOUT = 10.0
_SLOW = 1.0  # seconds without an answer, after which a server is asked what it speaks


class BootstrapServers:
    """The servers that the broker URL names, each `host:port`."""

    def __init__(self, servers: Sequence[str], settings: KafkaSettings, tasks: Tasks) -> None:
        self.settings = settings
        self._servers = list(servers)
        self._tasks = tasks
        self.away: str | None = None
        """What to say about brokers that the cluster names and nobody reaches from here."""

    async def probe(self, options: Mapping[str, Any]) -> None:
        """Return when a bootstrap server lets us in. The library's own bootstrap hides why one doesn't."""
        options = dict(options) | {
            "request_timeout_ms": milliseconds(min(CONNECT_TIMEOUT, self.settings.request_timeout))
        }
        del options["bootstrap_servers"], options["retry_backoff_ms"]
        found: list[BrokerError] = []
        for host, port, _ in collect_hosts(self._servers):
            server = f"{host}:{port}"
            attempt = self._tasks.start(self._let_in(host, port, options), f"connect to {server}")
            try:
                done, _ = await asyncio.wait({attempt}, timeout=_SLOW)
                if not done:
                    await self._refuse_mismatch(host, port)
                brokers = await attempt
            finally:
                attempt.cancel()
            if not isinstance(brokers, Exception):
                await self._check_advertised(server, brokers)
                return
            if not isinstance(brokers, ConnectionRefusedError | socket.gaierror):
                await self._refuse_mismatch(host, port)
            found.append(mapped(brokers, server))
        for problem in found:
            if isinstance(problem, BrokerRefused):
                raise problem
        raise BrokerUnavailable("; ".join(str(problem) for problem in found))

    async def _let_in(
        self, host: str, port: int, options: Mapping[str, Any]
    ) -> list[tuple[str, int]] | Exception:
        """Where the cluster's brokers are, as this server says once it has let us in; or why it doesn't."""
        try:
            connection = await create_conn(host, port, **options)
            try:
                # A listener that wants credentials closes the connection at the first request that isn't about them.
                response = await connection.send(MetadataRequest([], allow_auto_topic_creation=False))
            finally:
                connection.close()
        except (errors.KafkaError, OSError, TimeoutError, ValueError) as error:
            return error
        return [(broker[1], broker[2]) for broker in response.brokers]

    async def _refuse_mismatch(self, host: str, port: int) -> None:
        """Raise BrokerRefused where the server speaks something else than the settings say."""
        found = await spoken(host, port)
        settings = self.settings
        if found is not None:
            said = mismatch(f"{host}:{port}", found, settings.security_protocol, settings.sasl_mechanism)
            if said is not None:
                raise BrokerRefused(said)

    async def _check_advertised(self, server: str, brokers: Sequence[tuple[str, int]]) -> None:
        """Clients go on to the addresses that the brokers advertise: say which of them can't be reached."""
        away = await unreachable(brokers)
        self.away = (
            f"{server} says that these brokers belong to the cluster, and they can't be reached from here:"
            f" {', '.join(f'{address} ({why})' for address, why in away.items())}. Are they down? Else change"
            " advertised.listeners on them to an address that this host reaches, or make the name known to this host"
            if away
            else None
        )
        if away and len(away) == len(set(brokers)):
            raise BrokerUnavailable(self.away)
        if self.away is not None:
            log.warning("some brokers can't be reached", error=self.away)

    async def look_again(self, client: AIOKafkaClient) -> None:
        """Whether those that couldn't be reached can be by now."""
        if self.away is not None:
            brokers = [(broker.host, broker.port) for broker in client.cluster.brokers()]
            if not await unreachable(brokers):
                self.away = None
