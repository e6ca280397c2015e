"""The transport as a whole, over real sockets: pool, deadlines, addresses, cancellation, closing."""

from __future__ import annotations

import asyncio
import gc
import time
from pathlib import Path

from dispatcher.core.request.results import Failure, Reason, Response
from dispatcher.core.request.urls import Origin
from tests.transport.origins import Make, Names, http, reason
from tests.zoo.behaviours import OK, answers, never_answers, response
from tests.zoo.server import Peer, Zoo


def sockets() -> int:
    """Sockets that this process has open."""
    count = 0
    for entry in Path("/proc/self/fd").iterdir():
        try:
            count += str(entry.readlink()).startswith("socket:")
        except FileNotFoundError:
            continue
    return count


async def test_410_on_a_used_connection_is_confirmed_on_a_fresh_one_within_the_attempt(
    zoo: Zoo, make: Make
) -> None:
    seen: list[tuple[int, bytes]] = []

    async def script(peer: Peer) -> None:
        while True:
            seen.append((peer.number, await peer.request()))
            await peer.send(OK if len(seen) == 1 else response(b"", status=b"410 Gone"))

    origin = http(await zoo.serve(script))
    harness = make()
    assert isinstance(await harness.result(origin), Response)
    exchange = harness.send(origin)
    result = await exchange.result
    assert isinstance(result, Response)
    assert result.status == 410
    assert exchange.told == 1
    assert [number for number, _ in seen] == [1, 1, 2]
    assert seen[1][1] == seen[2][1]
    assert harness.transport.resent == 1


async def test_410_whose_confirmation_fails_disables_nothing(zoo: Zoo, make: Make) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        if peer.number == 1:
            await peer.send(OK)
            await peer.request()
            await peer.send(response(b"", status=b"410 Gone"))
            await peer.hang()

    origin = http(await zoo.serve(script))
    harness = make()
    assert isinstance(await harness.result(origin), Response)
    result = await harness.result(origin)
    assert isinstance(result, Failure)
    assert result.reason is Reason.CLOSED


async def test_the_deadline_is_over_everything(zoo: Zoo, make: Make) -> None:
    port = await zoo.serve(never_answers)
    names = Names({"slow.example": ("127.0.0.1",)})
    names.delay = 5.0
    harness = make(lookup=names)
    begin = time.perf_counter()
    results = await asyncio.gather(
        harness.result(http(port), within=0.2), harness.result(http(port, "slow.example"), within=0.2)
    )
    assert [reason(result) for result in results] == [Reason.TIMEOUT, Reason.TIMEOUT]
    assert time.perf_counter() - begin < 3
    assert "looking up slow.example" in str(results[1])


async def test_a_deadline_that_has_passed_gives_a_result_and_not_inside_send(zoo: Zoo, make: Make) -> None:
    async def script(peer: Peer) -> None:
        if (await peer.request()).endswith(b"x" * 21):
            await peer.send(OK)
        await peer.hang()

    origin = http(await zoo.serve(script))
    harness = make()
    for _ in range(2):  # on a fresh connection, then on a pooled one
        exchange = harness.send(origin, within=-1)
        assert exchange.told == 0
        assert reason(await exchange.result) is Reason.TIMEOUT
        assert isinstance(await harness.result(origin, body=21), Response)


async def test_a_shorter_deadline_than_the_one_before_is_kept(zoo: Zoo, make: Make) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.hang()

    harness = make()
    origin = http(await zoo.serve(script))
    await harness.result(origin, within=60)
    begin = time.perf_counter()
    assert reason(await harness.result(origin, within=0.1)) is Reason.TIMEOUT
    assert time.perf_counter() - begin < 2


async def test_cancelled_exchanges_leave_nothing_open(zoo: Zoo, make: Make) -> None:
    port = await zoo.serve(never_answers)
    names = Names({"slow.example": ("127.0.0.1",)})
    names.delay = 60.0
    harness = make(lookup=names)
    exchanges = [
        harness.send(http(port)),
        harness.send(Origin("https", "127.0.0.1", port)),
        harness.send(http(port, "slow.example")),
    ]
    async with asyncio.timeout(10):
        while harness.transport.connections_opened < 2:
            await asyncio.sleep(0.01)
    late = harness.send(http(port))  # its dial has not begun
    for exchange in (*exchanges, late):
        harness.transport.cancel(exchange)
        harness.transport.cancel(exchange)
        assert reason(await exchange.result) is Reason.CANCELLED
        assert exchange.told == 1
    assert len(harness.transport) == 0
    async with asyncio.timeout(10):
        while harness.transport.connections_closed < 2:
            await asyncio.sleep(0.01)
    assert harness.transport.connections_opened == harness.transport.connections_closed == 2


async def test_closing_lets_what_is_under_way_end_and_takes_nothing_new(zoo: Zoo, make: Make) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await asyncio.sleep(0.1)
        await peer.send(OK)
        await peer.hang()

    port = await zoo.serve(script)
    hanging = await zoo.serve(never_answers)
    harness = make()
    quick, slow = harness.send(http(port)), harness.send(http(hanging))
    await asyncio.sleep(0.02)
    closing = asyncio.get_running_loop().create_task(harness.transport.close(0.3))
    await asyncio.sleep(0)
    refused = harness.send(http(port, "127.0.0.2"))
    assert refused.told == 0
    await closing
    assert isinstance(await quick.result, Response)
    assert reason(await slow.result) is Reason.CANCELLED
    assert reason(await refused.result) is Reason.CANCELLED
    assert harness.transport.connections() == {"idle": 0, "busy": 0, "connecting": 0}
    assert harness.transport.connections_opened == harness.transport.connections_closed


async def test_nothing_is_left_open_after_close(zoo: Zoo, make: Make) -> None:
    gc.collect()  # what a test before has left in a cycle
    await asyncio.sleep(0.05)
    before = sockets()
    async with Zoo() as own:
        port = await own.serve(answers(OK))
        harness = make()
        await asyncio.gather(*(harness.result(http(port)) for _ in range(20)))
        await harness.close()
    await asyncio.sleep(0.1)
    assert sockets() == before


def test_the_transport_reads_no_more_of_the_environment_than_it_is_given() -> None:
    package = Path(__file__).parents[2] / "dispatcher" / "transport"
    assert not [path.name for path in package.glob("*.py") if "environ" in path.read_text()]
