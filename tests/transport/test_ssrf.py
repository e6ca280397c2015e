"""Every address of the table, by the three ways in which an endpoint could smuggle it in."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from ipaddress import ip_address

import pytest

from dispatcher.core.request.netguard import Guard
from dispatcher.core.request.results import Failure, Reason, Result
from dispatcher.core.request.urls import Blocked, Origin
from dispatcher.runtime.timers import Timers
from dispatcher.settings.groups import DeliverySettings, NetworkSettings
from dispatcher.transport.client import Transport
from tests.core.request.test_netguard import DENIED


def is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


# Other rows are spellings that are no addresses at all; their table is tests/core/request/test_netguard.py.
ADDRESSES = [address for address, _ in DENIED if is_address(address)]


class Answers:
    """A name server that says what it is told to."""

    def __init__(self) -> None:
        self.addresses: Sequence[str] = ()

    async def resolve(self, host: str) -> Sequence[str]:
        return self.addresses

    async def close(self) -> None: ...


class Sent:
    """An exchange that waits for its result."""

    def __init__(self, deadline: float) -> None:
        self.request = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
        self.deadline = deadline
        self.result: asyncio.Future[Result] = asyncio.get_running_loop().create_future()

    def done(self, result: Result) -> None:
        self.result.set_result(result)


def literal(address: str) -> str:
    return f"[{address}]" if ip_address(address).version == 6 else address


def test_the_table_is_as_large_as_it_should_be() -> None:
    assert len(set(ADDRESSES)) == len(ADDRESSES) >= 100
    assert 2 * len(ADDRESSES) >= 200


@pytest.mark.parametrize("address", ADDRESSES)
async def test_a_name_that_resolves_to_it_is_never_connected_to(address: str) -> None:
    loop = asyncio.get_running_loop()
    answers = Answers()
    answers.addresses = [address]
    transport = Transport(
        delivery=DeliverySettings(),
        network=NetworkSettings(https_only=False),
        guard=Guard(https_only=False),
        timers=Timers(loop),
        lookup=answers,
    )
    sent = Sent(loop.time() + 10)
    transport.send(Origin("http", "rebound.example", 80), sent)
    result = await sent.result
    assert isinstance(result, Failure)
    assert result.reason is Reason.BLOCKED
    assert transport.connections_opened == 0
    await transport.close()


@pytest.mark.parametrize("address", ADDRESSES)
async def test_as_a_literal_it_is_never_connected_to_even_where_no_url_was_checked(address: str) -> None:
    loop = asyncio.get_running_loop()
    transport = Transport(
        delivery=DeliverySettings(),
        network=NetworkSettings(https_only=False),
        guard=Guard(https_only=False),
        timers=Timers(loop),
        lookup=Answers(),
    )
    sent = Sent(loop.time() + 10)
    transport.send(Origin("http", address, 80), sent)
    result = await sent.result
    assert isinstance(result, Failure)
    assert result.reason is Reason.BLOCKED
    assert transport.connections_opened == 0
    await transport.close()


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_redirect_to_it_is_refused(address: str) -> None:
    guard = Guard(https_only=False)
    base = guard.check_url("http://hooks.example.com/in")
    for location in (f"http://{literal(address)}/", f"//{literal(address)}/latest/meta-data"):
        with pytest.raises(Blocked):
            guard.check_redirect(base, location)
