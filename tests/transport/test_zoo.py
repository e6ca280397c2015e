"""Whatever an endpoint does gives the result that the table says, and leaves the connection that it says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from dispatcher.core.request.results import Failure, Response
from dispatcher.core.request.urls import Origin
from tests.zoo.behaviours import ALL, CAP, Behaviour, Left
from tests.zoo.harness import Harness
from tests.zoo.server import Peer, Zoo


def _name(behaviour: Behaviour) -> str:
    return ("tls " if behaviour.tls else "") + behaviour.name


@pytest.mark.parametrize("behaviour", ALL, ids=_name)
async def test_behaviour_gives_its_result_and_leaves_its_connection(
    behaviour: Behaviour, zoo: Zoo, make: Callable[..., Harness]
) -> None:
    seen = 0

    async def counting(peer: Peer) -> None:
        nonlocal seen
        seen += 1
        await behaviour.script(peer)

    port = await zoo.serve(counting)
    harness = make(delivery={"response_cap": CAP})
    transport = harness.transport
    origin = Origin("https" if behaviour.tls else "http", "127.0.0.1", port)
    for number in range(behaviour.exchanges):
        if number:
            await asyncio.sleep(behaviour.pause)
        exchange = harness.send(origin, body=behaviour.body, within=behaviour.deadline)
        assert exchange.told == 0
        result = await exchange.result
        assert exchange.told == 1
        if isinstance(behaviour.gives, int):
            assert isinstance(result, Response), result
            assert result.status == behaviour.gives
            assert behaviour.says.encode() in result.body
            assert len(result.body) <= 1024
        else:
            assert isinstance(result, Failure), result
            assert result.reason is behaviour.gives, result
            assert behaviour.says in result.detail
    states = transport.connections()
    assert states["busy"] == states["connecting"] == 0
    if behaviour.leaves is Left.CLOSED:
        await asyncio.sleep(behaviour.pause)
        await asyncio.sleep(0.02)  # what came while the machine stood still is read in the next turn
        assert transport.connections()["idle"] == 0
        assert len(transport) == 0
    else:
        assert states["idle"] == 1
    if behaviour.connections is not None:
        assert seen == behaviour.connections
    await harness.close()
    assert transport.connections_opened == transport.connections_closed
    assert len(transport) == 0


def test_names_are_unique_and_there_are_enough_of_them() -> None:
    names = [_name(behaviour) for behaviour in ALL]
    assert len(set(names)) == len(names) >= 60
