"""The transport as a whole, over real sockets: pool, deadlines, addresses, cancellation, closing."""

from __future__ import annotations

import asyncio
import errno
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from dispatcher.core.request.results import Failure, Reason, Response, Result
from dispatcher.core.request.urls import Origin
from dispatcher.transport.dial import Dialer, LookupFailed
from tests.zoo.behaviours import OK, answers, drips, never_answers, response
from tests.zoo.harness import Exchange, Harness, post
from tests.zoo.server import Peer, Zoo, good, over_tls

Make = Callable[..., Harness]


class Names:
    """A look-up with answers from a dictionary; `asked` are the questions."""

    def __init__(self, answers: dict[str, Sequence[str] | Reason]) -> None:
        self.answers = answers
        self.asked: list[str] = []
        self.delay = 0.0

    async def resolve(self, host: str) -> Sequence[str]:
        self.asked.append(host)
        await asyncio.sleep(self.delay)
        answer = self.answers[host]
        if isinstance(answer, Reason):
            raise LookupFailed(Failure(answer, host))
        return answer

    async def close(self) -> None:
        self.answers = {}


def http(port: int, host: str = "127.0.0.1") -> Origin:
    return Origin("http", host, port)


def reason(result: Result) -> Reason:
    assert isinstance(result, Failure), result
    return result.reason


def sockets() -> int:
    """Sockets that this process has open."""
    count = 0
    for entry in Path("/proc/self/fd").iterdir():
        try:
            count += str(entry.readlink()).startswith("socket:")
        except FileNotFoundError:
            continue
    return count


# -- The pool


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


# -- Deadlines and cancellation


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
    await asyncio.sleep(0.05)
    late = harness.send(http(port))  # its dial has not begun
    for exchange in (*exchanges, late):
        harness.transport.cancel(exchange)
        harness.transport.cancel(exchange)
        assert reason(await exchange.result) is Reason.CANCELLED
        assert exchange.told == 1
    assert len(harness.transport) == 0
    await asyncio.sleep(0.05)
    assert harness.transport.connections_opened == harness.transport.connections_closed == 2


# -- Closing


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
    await asyncio.sleep(0.05)
    before = sockets()
    async with Zoo() as own:
        port = await own.serve(answers(OK))
        harness = make()
        await asyncio.gather(*(harness.result(http(port)) for _ in range(20)))
        await harness.close()
    await asyncio.sleep(0.1)
    assert sockets() == before


# -- Addresses


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


def test_the_transport_reads_no_more_of_the_environment_than_it_is_given() -> None:
    package = Path(__file__).parents[2] / "dispatcher" / "transport"
    assert not [path.name for path in package.glob("*.py") if "environ" in path.read_text()]


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
    unknown = await harness.result(http(await zoo.serve(never_answers), "slow.test"), within=0.3)
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
