"""Opening a connection, over real sockets: look up, check, race, give up."""

from __future__ import annotations

import asyncio
import errno
import socket
import time
from collections.abc import Callable
from typing import Any, cast

import pytest

from dispatcher.core.request.results import Failure, Reason, Response
from dispatcher.core.request.urls import Origin
from dispatcher.transport.dial import Dialer
from tests.transport.origins import Make, Names, http, reason
from tests.zoo.behaviours import OK, answers, drips, never_answers, response
from tests.zoo.server import Peer, Zoo, good, over_tls


async def test_the_connect_timeout_is_over_look_up_connection_and_tls(zoo: Zoo, make: Make) -> None:
    port = await zoo.serve(never_answers)
    names = Names({"slow.example": ("127.0.0.1",)})
    names.delay = 5.0
    harness = make(delivery={"connect_timeout": "100ms"}, lookup=names)
    for origin in (Origin("https", "127.0.0.1", port), http(port, "slow.example")):
        exchange = harness.send(origin)
        assert reason(await exchange.result) is Reason.CONNECT_TIMEOUT
    assert len(harness.transport) == 0


async def test_a_timer_that_comes_up_early_does_not_change_which_limit_has_passed(
    zoo: Zoo, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = make(delivery={"connect_timeout": "5s"})
    at = harness.timers.at
    monkeypatch.setattr(harness.timers, "at", lambda due, callback: at(due - 0.05, callback))
    origin = Origin("https", "127.0.0.1", await zoo.serve(never_answers))
    assert reason(await harness.result(origin, within=0.2)) is Reason.TIMEOUT


async def test_a_refused_connection_is_told_as_such(zoo: Zoo, make: Make) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    harness = make()
    assert reason(await harness.result(http(port))) is Reason.CONNECT_REFUSED
    assert len(harness.transport) == 0


async def test_a_literal_that_may_not_be_contacted_is_blocked(zoo: Zoo, make: Make) -> None:
    harness = make(allow=("127.0.0.0/8",))
    for host in ("10.0.0.1", "169.254.169.254", "::1", "::ffff:10.0.0.1"):
        exchange = harness.send(http(80, host))
        assert exchange.told == 0
        assert reason(await exchange.result) is Reason.BLOCKED
    assert harness.transport.connections_opened == 0


async def test_a_name_is_connected_to_only_where_its_addresses_may_be_contacted(zoo: Zoo, make: Make) -> None:
    port = await zoo.serve(answers(OK))
    names = Names(
        {
            "inside.example": ("10.0.0.1", "192.168.1.1", "fd00::1"),
            "mixed.example": ("10.0.0.1", "127.0.0.1", "169.254.169.254"),
            "nowhere.example": (),
            "gone.example": Reason.DNS_NOT_FOUND,
            "broken.example": Reason.DNS_FAILED,
        }
    )
    harness = make(allow=("127.0.0.0/8",), lookup=names)
    wanted = {
        "inside.example": Reason.BLOCKED,
        "nowhere.example": Reason.BLOCKED,
        "gone.example": Reason.DNS_NOT_FOUND,
        "broken.example": Reason.DNS_FAILED,
    }
    for host, why in wanted.items():
        assert reason(await harness.result(http(port, host))) is why
    assert harness.transport.connections_opened == 0
    assert isinstance(await harness.result(http(port, "mixed.example")), Response)


async def test_a_broken_look_up_is_a_failure_like_another(zoo: Zoo, make: Make) -> None:
    harness = make(lookup=Names({}))  # raises KeyError
    result = await harness.result(http(80, "unknown.example"))
    assert reason(result) is Reason.CONNECT_FAILED
    assert "KeyError" in str(result)


async def test_rebinding_between_two_connections_is_caught(zoo: Zoo, make: Make) -> None:
    port = await zoo.serve(answers(response(b"", b"Connection: close")))
    names = Names({"rebind.example": ("127.0.0.1",)})
    harness = make(allow=("127.0.0.0/8",), lookup=names)
    assert isinstance(await harness.result(http(port, "rebind.example")), Response)
    names.answers["rebind.example"] = ("169.254.169.254",)
    assert reason(await harness.result(http(port, "rebind.example"))) is Reason.BLOCKED


async def test_the_next_address_is_tried_when_one_fails(zoo: Zoo, make: Make) -> None:
    port = await zoo.serve(answers(OK))
    names = Names(
        {"two.example": ("::1", "127.0.0.2", "127.0.0.1"), "none.example": ("127.0.0.2", "127.0.0.3")}
    )
    harness = make(lookup=names)
    assert isinstance(await harness.result(http(port, "two.example")), Response)
    assert harness.transport.connections_opened == 1
    assert reason(await harness.result(http(port, "none.example"))) is Reason.CONNECT_REFUSED
    assert harness.transport.connections()["connecting"] == 0


async def test_an_address_that_does_not_answer_is_overtaken(
    zoo: Zoo, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Happy eyeballs: the first address hangs, the second one is tried beside it after 250 ms."""
    port = await zoo.serve(answers(OK))
    harness = make(lookup=Names({"eyes.example": ("127.0.0.9", "127.0.0.1")}))
    loop = harness.loop
    real = type(loop).create_connection
    tried = []

    async def create_connection(
        factory: Callable[[], asyncio.Protocol], host: str, *args: object, **kwargs: object
    ) -> object:
        tried.append(host)
        if host == "127.0.0.9":
            await asyncio.sleep(60)
        return await real(loop, factory, host, *args, **kwargs)  # type: ignore[call-overload]

    class Slow:
        def __getattr__(self, name: str) -> object:
            return create_connection if name == "create_connection" else getattr(loop, name)

    harness.transport._shared.loop = Slow()  # type: ignore[assignment]
    begin = time.perf_counter()
    assert isinstance(await harness.result(http(port, "eyes.example")), Response)
    assert 0.2 <= time.perf_counter() - begin < 5
    assert tried == ["127.0.0.9", "127.0.0.1"]
    assert harness.transport.connections() == {"idle": 1, "busy": 0, "connecting": 0}
    await harness.result(http(port, "eyes.example"))
    assert harness.transport.connections_opened == 1


async def test_a_race_leaves_only_the_winner_open(zoo: Zoo, make: Make) -> None:
    """Both answer at once: the second socket is closed again."""
    port = await zoo.serve(answers(OK), host="0.0.0.0")
    harness = make(lookup=Names({"race.example": [f"127.0.0.{number}" for number in range(1, 9)]}))
    import dispatcher.transport.dial as module  # noqa: PLC0415 - to be changed for this test

    patch = pytest.MonkeyPatch()
    patch.setattr(module, "STAGGER", 0.0)
    try:
        results = await asyncio.gather(*(harness.result(http(port, "race.example")) for _ in range(30)))
    finally:
        patch.undo()
    assert all(isinstance(result, Response) for result in results)
    await asyncio.sleep(0.05)
    assert harness.transport.connections() == {"idle": 30, "busy": 0, "connecting": 0}
    assert harness.transport.connections_opened - harness.transport.connections_closed == 30


async def test_connections_come_from_the_bound_address(zoo: Zoo, make: Make) -> None:
    seen = []

    async def script(peer: Peer) -> None:
        seen.append(peer.writer.get_extra_info("peername")[0])
        await answers(OK)(peer)

    port = await zoo.serve(script)
    names = Names({"both.example": ("::1", "127.0.0.1"), "six.example": ("::1",)})
    harness = make(network={"bind": "127.0.0.77"}, lookup=names)
    assert isinstance(await harness.result(http(port)), Response)
    assert isinstance(await harness.result(http(port, "both.example")), Response)
    assert seen == ["127.0.0.77", "127.0.0.77"]
    result = await harness.result(http(port, "six.example"))
    assert reason(result) is Reason.CONNECT_FAILED
    assert "network.bind" in str(result)


async def test_a_lack_of_file_descriptors_is_a_failure_like_another(
    zoo: Zoo, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = make()
    loop = harness.loop

    class Full:
        def __getattr__(self, name: str) -> object:
            if name == "create_connection":
                raise OSError(errno.EMFILE, "Too many open files")
            return getattr(loop, name)

    harness.transport._shared.loop = Full()  # type: ignore[assignment]
    result = await harness.result(http(1))
    assert reason(result) is Reason.CONNECT_FAILED
    assert "Too many open files" in str(result)


async def test_idle_connections_give_way_when_there_are_no_file_descriptors(zoo: Zoo, make: Make) -> None:
    port = await zoo.serve(answers(OK), host="0.0.0.0")
    harness = make()
    await asyncio.gather(*(harness.result(http(port, f"127.0.0.{number}")) for number in range(1, 6)))
    loop = harness.loop

    class Full:
        def __getattr__(self, name: str) -> object:
            if name == "create_connection" and harness.transport.connections()["idle"]:
                raise OSError(errno.EMFILE, "Too many open files")
            return getattr(loop, name)

    harness.transport._shared.loop = Full()  # type: ignore[assignment]
    assert isinstance(await harness.result(http(port, "127.0.0.6")), Response)
    assert harness.transport.connections() == {"idle": 1, "busy": 0, "connecting": 0}
    await asyncio.sleep(0.01)
    assert harness.transport.connections_closed == 5


async def test_a_result_tells_what_opening_the_connection_took_and_when_the_answer_began(
    make: Make, zoo: Zoo
) -> None:

    names = Names({"slow.test": ["127.0.0.1"]})
    names.delay = 0.05
    harness = make(lookup=names)
    origin = http(await zoo.serve(drips(b"", OK, 0.001)), "slow.test")
    for new in (True, False):
        begin = harness.loop.time()
        await asyncio.sleep(0.002)  # the loop's clock moves in milliseconds
        result = await harness.result(origin)
        assert isinstance(result, Response)
        assert (result.opened is not None) == new, (
            "of a connection that was open already there is nothing to tell"
        )
        if result.opened is not None:
            assert result.opened.dns is not None
            assert result.opened.dns >= 0.04
            assert result.opened.connect is not None
            assert result.opened.tls is None
        assert begin < result.first_byte < harness.loop.time()
    secure = await harness.result(Origin("https", "127.0.0.1", await zoo.serve(over_tls(answers(OK), good))))
    assert isinstance(secure, Response)
    assert secure.opened is not None
    assert secure.opened.dns is None, "an address needs no look-up"
    assert secure.opened.tls is not None
    unknown = await harness.result(http(await zoo.serve(never_answers), "slow.test"), within=1.5)
    assert isinstance(unknown, Failure)
    assert unknown.opened is not None
    assert unknown.opened.connect is not None
    assert unknown.first_byte == 0.0


def test_only_the_first_eight_addresses_of_a_name_are_tried_of_both_families_in_turn() -> None:
    route = cast("Any", Dialer)(
        guard=None, lookup=None, tasks=None, context=None, make_room=None, connect_timeout=1.0
    )
    four = [f"192.0.2.{number}" for number in range(20)]
    six = [f"2001:db8::{number}" for number in range(20)]
    tried = route.reachable("many.example", four + six)
    assert len(tried) == 8
    assert sum(":" in address for address in tried) == 4
