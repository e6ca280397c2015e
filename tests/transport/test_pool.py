"""Which connection carries the next exchange, over real sockets."""

from __future__ import annotations

import asyncio

import pytest

from dispatcher.core.request.results import Reason, Response, Result
from dispatcher.core.request.urls import Origin
from tests.transport.origins import Make, Names, http, reason
from tests.zoo.behaviours import OK, answers, response
from tests.zoo.harness import Exchange, post
from tests.zoo.server import Peer, Zoo, good, over_tls


async def test_the_connection_used_last_is_used_first(zoo: Zoo, make: Make) -> None:
    served: list[int] = []

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            served.append(peer.number)
            await asyncio.sleep(0.02 * peer.number)
            await peer.send(OK)

    origin = http(await zoo.serve(script))
    harness = make()
    await asyncio.gather(*(harness.result(origin) for _ in range(3)))
    last = served.copy()
    assert sorted(last) == [1, 2, 3]
    for _ in range(3):
        await harness.result(origin)
    assert served[3:] == [3, 3, 3]  # the slowest one came back last
    assert harness.transport.connections() == {"idle": 3, "busy": 0, "connecting": 0}


async def test_a_send_from_inside_done_goes_out_on_the_same_connection(zoo: Zoo, make: Make) -> None:
    origin = http(await zoo.serve(answers(OK)))
    harness = make()
    finished = asyncio.Event()

    class Chain(Exchange):
        left = 500

        def done(self, result: Result) -> None:
            assert isinstance(result, Response)
            Chain.left -= 1
            if Chain.left:
                harness.transport.send(origin, self)
            else:
                finished.set()

    harness.transport.send(origin, Chain(post(), harness.loop.time() + 10))
    await asyncio.wait_for(finished.wait(), 10)
    assert harness.transport.connections_opened == 1


async def test_a_connection_serves_its_number_of_requests_and_no_more(zoo: Zoo, make: Make) -> None:
    origin = http(await zoo.serve(answers(OK)))
    harness = make(delivery={"connection_max_requests": 3})
    for _ in range(7):
        await harness.result(origin)
    assert harness.transport.connections_opened == 3
    assert harness.transport.connections()["idle"] == 1


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_an_idle_connection_expires_and_its_pool_with_it(zoo: Zoo, make: Make, scheme: str) -> None:
    script = answers(OK) if scheme == "http" else over_tls(answers(OK), good)
    origin = Origin(scheme, "127.0.0.1", await zoo.serve(script))
    harness = make(delivery={"idle_timeout": "100ms"})
    await harness.result(origin)
    while not harness.transport.connections_closed:
        await asyncio.sleep(0.001)
    assert harness.transport.connections() == {"idle": 0, "busy": 0, "connecting": 0}
    assert len(harness.transport) == 0


async def test_what_is_sent_again_stays_in_its_pool(zoo: Zoo, make: Make) -> None:
    """Also where the connection that the endpoint had given up was the only one."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.request()
        if peer.number > 1:
            await peer.send(OK)
            await peer.hang()

    origin = http(await zoo.serve(script))
    harness = make()
    for _ in range(3):
        assert isinstance(await harness.result(origin), Response)
    transport = harness.transport
    assert (transport.resent, transport.connections_opened) == (1, 2)
    assert transport.connections() == {"idle": 1, "busy": 0, "connecting": 0}
    assert len(transport) == 1


async def test_what_is_sent_again_is_told_when_the_transport_closes(zoo: Zoo, make: Make) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        if peer.number == 1:
            await peer.send(OK)
            await peer.request()
        else:
            await peer.hang()

    origin = http(await zoo.serve(script))
    harness = make()
    assert isinstance(await harness.result(origin), Response)
    exchange = Exchange(post(), harness.loop.time() + 60)
    harness.transport.send(origin, exchange)
    while not harness.transport.resent:
        await asyncio.sleep(0.001)
    await harness.transport.close()
    assert reason(await asyncio.wait_for(exchange.result, 5)) is Reason.CANCELLED
    assert exchange.told == 1


async def test_many_hosts_leave_nothing_behind(zoo: Zoo, make: Make) -> None:
    port = await zoo.serve(answers(response(b"", b"Connection: close")), host="0.0.0.0")
    names = Names({f"host-{number}.example": (f"127.0.0.{number % 200 + 1}",) for number in range(2000)})
    harness = make(lookup=names)
    for start in range(0, 2000, 100):
        results = await asyncio.gather(
            *(harness.result(http(port, f"host-{number}.example")) for number in range(start, start + 100))
        )
        assert all(isinstance(result, Response) for result in results)
    await asyncio.sleep(0.05)
    assert len(harness.transport) == 0
    assert len(harness.timers) == 0
    assert harness.transport.connections_opened == harness.transport.connections_closed == 2000
