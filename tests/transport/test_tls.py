"""TLS: what an endpoint's certificate must be, client certificates, and the gate for handshakes."""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dispatcher.core.request.results import Failure, Reason, Response
from dispatcher.core.request.urls import Origin
from dispatcher.core.subscription.model import ClientCertificate
from dispatcher.transport import tls
from dispatcher.transport.tls import Gate
from tests.zoo.behaviours import OK, answers, closes_after, response
from tests.zoo.harness import Harness
from tests.zoo.server import (
    TlsPeer,
    Zoo,
    authority,
    demanding,
    demanding_tls12,
    over_tls,
    stranger,
)

Make = Callable[..., Harness]


def test_verification_is_on_and_old_versions_are_off(ca_file: str) -> None:
    for context in (tls.context(), tls.context(ca_file)):
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.check_hostname
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2
        assert context.options & ssl.OP_NO_RENEGOTIATION


def test_the_trusted_authorities_are_those_of_the_file_alone(ca_file: str) -> None:
    assert len(tls.context(ca_file).get_ca_certs()) == 1


def test_an_authority_file_that_cannot_be_read_is_told_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        tls.context(str(tmp_path / "missing.pem"))


async def test_a_client_certificate_is_shown_where_it_is_given(zoo: Zoo, make: Make, tmp_path: Path) -> None:
    certificate = authority().issue_cert("client.example")
    path = tmp_path / "client.pem"
    certificate.private_key_and_cert_chain_pem.write_to_path(str(path))
    given = ClientCertificate(str(path))
    for context in (demanding, demanding_tls12):
        shown: list[object] = []

        async def script(peer: TlsPeer, shown: list[object] = shown) -> None:
            shown.append(peer.tls.getpeercert())
            await answers(OK)(peer)

        origin = Origin("https", "127.0.0.1", await zoo.serve(over_tls(script, context)))
        harness = make()
        for _ in range(2):
            assert isinstance(await harness.result(origin, certificate=given), Response)
        assert len(shown) == 1
        # A connection with the certificate is not lent to those without.
        result = await harness.result(origin)
        assert isinstance(result, Failure)
        assert result.reason is Reason.TLS_FAILED
        assert len(harness.transport) == 1


async def test_a_client_certificate_of_a_stranger_or_none_at_all_fails(
    zoo: Zoo, make: Make, tmp_path: Path
) -> None:
    path = tmp_path / "client.pem"
    stranger().issue_cert("client.example").private_key_and_cert_chain_pem.write_to_path(str(path))
    origin = Origin("https", "127.0.0.1", await zoo.serve(over_tls(answers(OK), demanding)))
    harness = make()
    for given in (ClientCertificate(str(path)), ClientCertificate(str(tmp_path / "missing.pem"))):
        exchange = harness.send(origin, certificate=given)
        result = await exchange.result
        assert isinstance(result, Failure)
        assert result.reason is Reason.TLS_FAILED
    assert len(harness.transport) == 0


async def test_a_renewed_client_certificate_is_taken_up_by_the_next_connection(
    zoo: Zoo, make: Make, tmp_path: Path
) -> None:
    path = tmp_path / "client.pem"
    given = ClientCertificate(str(path))
    serials: list[object] = []

    async def script(peer: TlsPeer) -> None:
        serials.append((peer.tls.getpeercert() or {}).get("serialNumber"))
        await closes_after(response(b"", b"Connection: close"))(peer)

    origin = Origin("https", "127.0.0.1", await zoo.serve(over_tls(script, demanding)))
    harness = make()
    for stamp in (1, 1, 2):
        if not path.exists() or path.stat().st_mtime != stamp:
            renewed = authority().issue_cert("client.example").private_key_and_cert_chain_pem
            path.write_bytes(renewed.bytes())
            os.utime(path, (stamp, stamp))
        assert isinstance(await harness.result(origin, certificate=given), Response)
    assert serials[0] == serials[1] != serials[2]


async def test_the_gate_runs_everything_in_order_and_lets_the_loop_turn() -> None:
    loop = asyncio.get_running_loop()
    gate = Gate(loop)
    ran: list[int] = []
    turns = 0

    def step(number: int) -> Callable[[], None]:
        def run() -> None:
            time.sleep(0.0015)
            ran.append(number)

        return run

    for number in range(20):
        gate.run(step(number))
    assert ran == []
    while len(ran) < 20:
        await asyncio.sleep(0)
        turns += 1
    assert ran == list(range(20))
    assert turns >= 8


async def test_a_step_that_raises_stops_no_other() -> None:
    loop = asyncio.get_running_loop()
    reported: list[object] = []
    loop.set_exception_handler(lambda _loop, context: reported.append(context.get("exception")))
    gate = Gate(loop)
    ran: list[int] = []
    gate.run(lambda: 1 // 0)  # type: ignore[arg-type]
    gate.run(lambda: ran.append(1))
    await asyncio.sleep(0.01)
    assert ran == [1]
    assert isinstance(reported[0], ZeroDivisionError)


async def test_tenants_take_turns_at_the_gate() -> None:
    """A thousand connections of one tenant are due, and then one of another's."""
    gate = Gate(asyncio.get_running_loop())
    ran: list[str] = []
    for number in range(1000):
        gate.run(lambda: ran.append("many"), "a", number)
    gate.run(lambda: ran.append("one"), "b", 0)
    while len(ran) < 1001:
        await asyncio.sleep(0)
    assert ran.index("one") == 1
