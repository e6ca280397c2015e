"""A TCP relay that can lose the connection between one daemon and the broker, and a broker that leads through it.

Kafka tells its clients where to connect to next. So the broker gets, beside the usual one, a listener per
relay, advertised at the relay's port: whoever enters through a relay stays behind it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence

from tests.kafka.server import Cluster
from tests.ports import HOST, free_port


class Relay:
    """Passes bytes on to `upstream` (port); `cut` and `stall` stop that, `heal` lets them pass again."""

    def __init__(self) -> None:
        self.port = 0
        self.upstream = free_port()
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._refusing = False
        self._flow = asyncio.Event()
        self._flow.set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, HOST, 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        self._refusing = True
        self._flow.set()
        self._abort()
        await asyncio.sleep(0.05)

    def cut(self) -> None:
        self._refusing = True
        self._abort()

    def stall(self) -> None:
        self._flow.clear()

    def heal(self) -> None:
        self._refusing = False
        self._flow.set()

    def _abort(self) -> None:
        for writer in list(self._open):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            if self._refusing:
                return
            up_reader, up_writer = await asyncio.open_connection(HOST, self.upstream)
            self._open.add(up_writer)
            try:
                await asyncio.gather(self._pump(reader, up_writer), self._pump(up_reader, writer))
            finally:
                self._open.discard(up_writer)
                up_writer.transport.abort()
        except OSError:
            pass  # one of the ends is gone, and so is the other
        finally:
            self._open.discard(writer)
            writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                await self._flow.wait()
                writer.write(data)
                await writer.drain()
        writer.transport.abort()


class RelayedCluster(Cluster):
    """One node with a listener for each relay."""

    def __init__(self, relays: Sequence[Relay]) -> None:
        self._relays = relays
        super().__init__(1)

    @property
    def properties(self) -> dict[str, object]:
        """Asked for when the node has its ports."""
        names = [f"RELAY{number}" for number in range(len(self._relays))]
        node = self.nodes[0]
        listeners = [f"PLAINTEXT://{node.address}"]
        advertised = list(listeners)
        for name, relay in zip(names, self._relays, strict=True):
            listeners.append(f"{name}://{HOST}:{relay.upstream}")
            advertised.append(f"{name}://{HOST}:{relay.port}")
        listeners.append(f"CONTROLLER://{HOST}:{node.controller_port}")
        return {
            "listeners": ",".join(listeners),
            # A broker that was killed is let in again when its former life's session has ended.
            "broker.session.timeout.ms": 1500,
            "broker.heartbeat.interval.ms": 300,
            "advertised.listeners": ",".join(advertised),
            "listener.security.protocol.map": ",".join(
                f"{name}:PLAINTEXT" for name in ("CONTROLLER", "PLAINTEXT", *names)
            ),
        }

    @properties.setter
    def properties(self, value: Mapping[str, object]) -> None:
        """Set by the base class; here they follow from the relays."""
