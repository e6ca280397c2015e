"""Streams of what is indexed: who hears what, how much of it, and until when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import orjson
import pytest

from dispatcher.control import live
from dispatcher.control.errors import Overloaded
from dispatcher.control.live import Channel, Live
from tests.history.records import attempt, batch

pytestmark = pytest.mark.looptime

ALL = Channel(None, None)


class Progress:
    def as_of_ms(self) -> int:
        return 1_760_000_000_000


def made(**options: Any) -> Live:
    return Live(Progress(), complete=True, **options)


def stream(of: Live, channel: Channel = ALL, caller: str = "settings") -> AsyncGenerator[bytes, None]:
    return of.listen(caller, channel, "replica", lambda: True)


def parsed(said: bytes) -> list[tuple[str, Any]]:
    """The events of a message."""
    found = []
    for event in said.decode().split("\n\n")[:-1]:
        name, data = event.split("\n")
        found.append((name.removeprefix("event: "), orjson.loads(data.removeprefix("data: "))))
    return found


def tell(of: Live, *records: Any) -> None:
    of.indexed([batch(list(records), None, len(records))])


async def opened(of: Live, channel: Channel = ALL, caller: str = "settings") -> AsyncGenerator[bytes, None]:
    """A stream that has said hello."""
    found = stream(of, channel, caller)
    [(name, data)] = parsed(await anext(found))
    assert (name, data["as_of"], data["replica"]) == ("hello", "2025-10-09T08:53:20.000Z", "replica")
    return found


async def test_what_is_indexed_is_told_once_a_second() -> None:
    of = made()
    listener = await opened(of)
    began = asyncio.get_running_loop().time()
    tell(of, attempt(0, 0, "sub_a", tenant="acme"), attempt(1, 1, "sub_a", tenant="acme"))
    tell(of, attempt(2, 2, "sub_b", tenant="globex", decision="retry", status=503))
    said = parsed(await anext(listener))
    assert asyncio.get_running_loop().time() - began == pytest.approx(1.0)
    assert said[0] == (
        "tick",
        {
            "as_of": "2025-10-09T08:53:20.000Z",
            "attempts": 3,
            "delivered": 2,
            "failed": 1,
            "dead": 0,
            "subscriptions": {
                "sub_a": {"delivered": 2, "failed": 0},
                "sub_b": {"delivered": 0, "failed": 1},
            },
        },
    )
    assert [each["subscription"] for each in said[1][1]["deliveries"]] == ["sub_b", "sub_a", "sub_a"]
    assert said[1][1]["more"] == 0
    assert said[2] == ("failing", {"subscription": "sub_b", "failing": True, "result": "status 503"})
    tell(of, attempt(3, 3, "sub_b", tenant="globex"))
    assert parsed(await anext(listener))[2] == (
        "failing",
        {"subscription": "sub_b", "failing": False, "result": "status 200"},
    )
    await listener.aclose()


async def test_a_listener_hears_of_its_tenant_and_its_subscription_only() -> None:
    of = made()
    channels = (Channel("acme", None), Channel("acme", "sub_globex"), Channel(None, "sub_globex"))
    listeners = [await opened(of, channel) for channel in channels]
    tell(
        of,
        attempt(0, 0, "sub_acme", tenant="acme"),
        attempt(1, 1, "sub_globex", tenant="globex"),
        attempt(2, 2, "sub_none", tenant=None),
    )
    heard = [parsed(await anext(listener)) for listener in listeners]
    assert list(heard[0][0][1]["subscriptions"]) == ["sub_acme"]
    assert heard[1][0][0] == "heartbeat"
    assert list(heard[2][0][1]["subscriptions"]) == ["sub_globex"]
    assert "globex" not in str(heard[0])
    for listener in listeners:
        await listener.aclose()


async def test_what_has_no_tenant_is_counted_once() -> None:
    of = made()
    listener = await opened(of)
    tell(of, attempt(0, 0, "sub_a", tenant=None))
    assert parsed(await anext(listener))[0][1]["attempts"] == 1
    await listener.aclose()


async def test_silence_is_broken_every_five_seconds() -> None:
    of = made()
    listener = await opened(of)
    began = asyncio.get_running_loop().time()
    for _ in range(3):
        assert parsed(await anext(listener))[0][0] == "heartbeat"
    assert asyncio.get_running_loop().time() - began == pytest.approx(15.0)
    await listener.aclose()


async def test_a_message_is_bounded_whatever_a_second_brought() -> None:
    of = made()
    listener = await opened(of)
    tell(of, *(attempt(number, number, f"sub_{number}", tenant="acme") for number in range(500)))
    said = parsed(await anext(listener))
    assert said[0][1]["attempts"] == 500
    assert len(said[0][1]["subscriptions"]) == 100
    assert (len(said[1][1]["deliveries"]), said[1][1]["more"]) == (20, 480)
    await listener.aclose()


async def test_a_reader_that_takes_nothing_is_told_and_ended_and_the_others_are_not() -> None:
    of = made()
    slow, quick = await opened(of), await opened(of)
    for number in range(40):
        tell(of, attempt(number, number, "sub_a", tenant="acme"))
        assert parsed(await anext(quick))[0][0] in ("tick", "heartbeat")
        await asyncio.sleep(1.0)
    assert parsed(await anext(slow)) == [("end", {"reason": "slow"})]
    with pytest.raises(StopAsyncIteration):
        await anext(slow)
    await quick.aclose()


async def test_whoever_may_no_longer_listen_is_ended_within_a_heartbeat() -> None:
    of = made()
    allowed = True
    listener = of.listen("settings", ALL, "replica", lambda: allowed)
    await anext(listener)
    assert parsed(await anext(listener))[0][0] == "heartbeat"
    allowed = False
    assert parsed(await anext(listener)) == [("end", {"reason": "session"})]


async def test_there_are_so_many_streams_of_a_caller_and_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "MAX_OF_CALLER", 2)
    monkeypatch.setattr(live, "MAX_STREAMS", 3)
    of = made()
    mine = [await opened(of, caller="a"), await opened(of, caller="a")]
    with pytest.raises(Overloaded):
        stream(of, caller="a")
    other = await opened(of, caller="b")
    with pytest.raises(Overloaded):
        stream(of, caller="c")
    await mine[0].aclose()
    waiting = [stream(of, caller="a"), stream(of, caller="a")]
    assert parsed(await anext(waiting[0]))[0][0] == "hello"
    # Both were let in when there was room for one.
    assert parsed(await anext(waiting[1])) == [("end", {"reason": "busy"})]
    for each in (mine[1], other, *waiting):
        await each.aclose()


async def test_at_the_stop_every_stream_ends() -> None:
    of = made()
    listener = await opened(of)
    tell(of, attempt(0, 0, "sub_a", tenant="acme"))
    of.close()
    assert parsed(await anext(listener)) == [("end", {"reason": "stopping"})]
    late = stream(of)
    assert parsed(await anext(late))[0][0] == "hello"
    assert parsed(await anext(late)) == [("end", {"reason": "stopping"})]


async def test_while_nobody_listens_nothing_is_looked_at() -> None:
    class Untouchable:
        def __getattr__(self, name: str) -> Any:
            raise AssertionError(name)

    of = made()
    of.indexed([Untouchable()])  # type: ignore[list-item] # nothing of it may be asked
    listener = await opened(of)
    await listener.aclose()
    of.indexed([Untouchable()])  # type: ignore[list-item] # likewise
