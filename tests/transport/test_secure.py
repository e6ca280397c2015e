"""Connections with TLS: what the layer itself sends and receives."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
from pathlib import Path
from typing import Any, cast

import pytest

from dispatcher.core.request.results import Reason, Response
from dispatcher.core.request.urls import Origin
from dispatcher.transport import tls
from dispatcher.transport.connection import Connection
from dispatcher.transport.limits import MAX_HANDSHAKE
from dispatcher.transport.secure import SecureConnection
from tests.transport.origins import Make
from tests.zoo.behaviours import OK, answers
from tests.zoo.server import (
    Peer,
    TlsPeer,
    Zoo,
    authority,
    good,
    over_tls,
)
from tests.zoo.wire import Wire


async def test_names_are_sent_and_addresses_are_not(zoo: Zoo, make: Make) -> None:
    names: list[str | None] = []
    context = good()
    asked = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert("localhost", "127.0.0.1").configure_cert(asked)

    def named(_socket: object, name: str | None, _context: object) -> None:
        names.append(name)

    asked.sni_callback = named
    port = await zoo.serve(over_tls(answers(OK), lambda: asked))
    harness = make()
    for host in ("localhost", "127.0.0.1"):
        result = await harness.result(Origin("https", host, port))
        assert isinstance(result, Response), result
    assert names == ["localhost", None]
    assert context is good()


async def test_tickets_are_no_bytes_of_a_response(zoo: Zoo, make: Make) -> None:
    """TLS 1.3 tickets come in pieces: before the request, between it and the response, with the response."""

    async def script(peer: Peer) -> None:
        secure = TlsPeer(peer, good())
        while True:
            try:
                secure.tls.do_handshake()
            except ssl.SSLWantReadError:
                if data := secure.outgoing.read():
                    await peer.send(data)
                secure.incoming.write(await peer.read())
            else:
                break
        tickets = secure.outgoing.read()
        assert len(tickets) > 100
        await peer.send(tickets[:50])
        await secure.request()
        await peer.drip(tickets[50:100], 0.001, 10)
        secure.tls.write(OK)
        await peer.send(tickets[100:] + secure.outgoing.read())
        await secure.request()
        await secure.send(OK)
        await secure.hang()

    origin = Origin("https", "127.0.0.1", await zoo.serve(script))
    harness = make()
    for _ in range(2):
        assert isinstance(await harness.result(origin), Response)
        await asyncio.sleep(0.02)
    assert harness.transport.connections_opened == 1
    assert harness.transport.connections()["idle"] == 1


@pytest.mark.skipif(
    shutil.which("openssl") is None, reason="needs openssl s_server: Python can't update keys"
)
async def test_key_updates_keep_the_connection_while_busy_and_while_idle(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "server.pem"
    authority().issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(path))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ("openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-cert", str(path), "-crlf")
    server = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        await server.stdout.readuntil(b"ACCEPT")
        harness = make()
        for update in (b"", b"k\n", b"K\n"):  # one without, one that asks for ours in return
            exchange = harness.send(Origin("https", "127.0.0.1", port))
            await server.stdout.readuntil(b"x" * 20)
            for line in (update, b"HTTP/1.1 200 OK\nContent-Length: 0\n\n"):
                server.stdin.write(line)
                await asyncio.sleep(0.1)
            assert isinstance(await exchange.result, Response)
            server.stdin.write(update)
            await asyncio.sleep(0.1)
        assert harness.transport.connections_opened == 1
        assert harness.transport.connections()["idle"] == 1
    finally:
        server.kill()
        await server.communicate()


class Dialing(Wire):
    """Does nothing when the socket is connected: the test does."""

    def made(self, connection: Connection) -> None:
        """Nothing."""


def test_a_handshake_has_a_bound_also_while_it_waits_for_its_turn() -> None:
    wire = Dialing()
    connection = SecureConnection(wire.shared, wire, wire)
    wire.connection = connection
    connection.connection_made(cast("Any", wire))
    connection.secure(tls.context(), "a.example")
    for _ in range(MAX_HANDSHAKE // 16384):
        connection.data_received(bytes(16384))
    assert not wire.failures
    connection.data_received(b"x")
    [failure] = wire.failures
    assert failure.reason is Reason.TLS_FAILED
    assert str(MAX_HANDSHAKE) in failure.detail
