"""What must be durable before something else may happen."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

import pytest

from dispatcher.broker.base import (
    Acknowledged,
    BrokerError,
    BrokerRefused,
    BrokerUnavailable,
    Message,
    MessageTooLarge,
)
from dispatcher.core.retry.records import unreadable_headers
from dispatcher.delivery.outbox import Outbox
from dispatcher.runtime.tasks import Tasks

pytestmark = [pytest.mark.looptime]


class Sink:
    """A broker that takes what it likes."""

    def __init__(self) -> None:
        self.calls: list[list[bytes | None]] = []
        self.written: list[Message] = []
        self.errors: list[BrokerError] = []
        self.largest = 1 << 20
        self.largest_headers = 1 << 20
        self.takes = 0.01
        self.takes_half = False  # every other record of a write that fails

    async def produce(self, messages: Sequence[Message], acknowledged: Acknowledged) -> None:
        self.calls.append([message.value for message in messages])
        await asyncio.sleep(self.takes)
        if self.errors:
            took = range(0, len(messages), 2) if self.takes_half else ()
            self.written += [messages[number] for number in took]
            acknowledged(took)
            raise self.errors.pop(0)
        if any(len(message.value or b"") > self.largest for message in messages):
            raise MessageTooLarge("too large")
        if any(
            sum(len(value) for _, value in message.headers) + len(message.key or b"") > self.largest_headers
            for message in messages
        ):
            raise MessageTooLarge("headers too large")
        self.written += messages
        acknowledged(range(len(messages)))


@asynccontextmanager
async def running(sink: Sink) -> AsyncIterator[Outbox]:
    outbox = Outbox(sink.produce)
    tasks = Tasks()
    tasks.start(outbox.run(), "outbox")
    yield outbox
    await tasks.stop()


def message(number: int, size: int = 0) -> Message:
    return Message("dead", b"%d" % number + b"x" * size)


async def test_the_callback_comes_after_the_acknowledgement_and_once() -> None:
    sink = Sink()
    called: list[float] = []
    async with running(sink) as outbox:
        start = asyncio.get_running_loop().time()
        outbox.put(message(1), lambda: called.append(asyncio.get_running_loop().time() - start))
        assert len(outbox) == 1
        await asyncio.sleep(1)
        assert called == [pytest.approx(0.01, abs=0.001)]
        assert len(outbox) == 0


async def test_what_waits_goes_in_one_batch_in_order() -> None:
    sink = Sink()
    async with running(sink) as outbox:
        outbox.put(message(0), lambda: None)
        await asyncio.sleep(0.005)
        for number in range(1, 2500):
            outbox.put(message(number), lambda: None)
        await asyncio.sleep(1)
        assert [len(call) for call in sink.calls] == [1, 1000, 1000, 499]
        assert [written.value for written in sink.written] == [b"%d" % number for number in range(2500)]


@pytest.mark.parametrize("error", [BrokerUnavailable("away"), BrokerRefused("no"), BrokerError("odd")])
async def test_a_broker_that_fails_is_asked_again_with_growing_pauses_until_it_takes_it(
    error: BrokerError,
) -> None:
    sink = Sink()
    sink.errors = [error] * 10
    called: list[int] = []
    async with running(sink) as outbox:
        outbox.put(message(1), lambda: called.append(1))
        await asyncio.sleep(5)
        assert called == []
        assert outbox.problem == f"can't write to the broker: {error}"
        assert len(sink.calls) <= 6, "it doesn't spin"
        await asyncio.sleep(60)
        assert called == [1]
        assert outbox.problem is None


async def test_one_record_that_is_too_large_holds_none_of_the_others_and_goes_without_its_value() -> None:
    sink = Sink()
    sink.largest = 100
    called: list[int] = []
    async with running(sink) as outbox:
        for number in range(5):
            outbox.put(message(number, size=500 if number == 2 else 0), partial(called.append, number))
        await asyncio.sleep(5)
        assert called == [0, 1, 2, 3, 4]
        values = [written.value for written in sink.written]
        assert values == [b"0", b"1", b"", b"3", b"4"]
        assert sink.written[2].headers == [("omitted", b"value of 501 bytes")]


async def test_headers_that_are_too_large_go_last_and_never_end_the_outbox() -> None:
    sink = Sink()
    sink.largest_headers = 100
    called: list[int] = []
    async with running(sink) as outbox:
        headers = [("reason", b"json"), ("original.x", b"y" * 500), ("topic", b"events")]
        outbox.put(Message("dead", b"value", b"key", headers), lambda: called.append(1))
        await asyncio.sleep(1)
        assert called == [1]
        outbox.put(Message("dead", b"", headers=[("reason", b"z" * 500)]), lambda: called.append(2))
        await asyncio.sleep(30)
        assert called == [1]
        (written,) = sink.written
        assert [name for name, _ in written.headers] == ["reason", "topic", "omitted", "omitted"]
        assert outbox.problem is not None, "what can't be made smaller is held, and told of"
        sink.largest_headers = 1000
        await asyncio.sleep(30)
        assert called == [1, 2]


async def test_what_is_copied_of_a_record_that_cannot_be_unpacked_holds_none_of_the_others() -> None:
    sink = Sink()
    sink.largest_headers = 1000
    called: list[int] = []
    async with running(sink) as outbox:
        headers = unreadable_headers(
            [("\\xff", b"y" * 900)],
            topic="events",
            partition=0,
            offset=7,
            reason="unreadable",
            detail="the header name is not UTF-8",
            raw=[(b"\xff", b"y" * 900)],
        )
        outbox.put(Message("dead", b"value", b"key", headers), lambda: called.append(1))
        outbox.put(message(2), lambda: called.append(2))
        await asyncio.sleep(5)
        assert called == [1, 2]
        kept = [name for name, _ in sink.written[0].headers]
        assert "raw_headers" not in kept
        assert "reason" in kept


async def test_a_key_that_is_too_large_goes_though_nothing_else_is_copied() -> None:
    sink = Sink()
    sink.largest_headers = 1000
    called: list[int] = []
    async with running(sink) as outbox:
        outbox.put(Message("dead", b"value", b"k" * 2000, [("reason", b"json")]), lambda: called.append(1))
        await asyncio.sleep(5)
        assert called == [1]
        (written,) = sink.written
        assert written.key is None
        assert [name for name, _ in written.headers] == ["reason", "omitted", "omitted"]


async def test_the_first_record_goes_at_once_and_those_that_follow_gather_for_a_moment() -> None:
    sink = Sink()
    sink.takes = 0.001
    loop = asyncio.get_running_loop()
    async with running(sink) as outbox:
        began = loop.time()
        first: list[float] = []
        outbox.put(message(0), lambda: first.append(loop.time() - began))
        for number in range(1, 200):  # 200 a second
            await asyncio.sleep(0.005)
            outbox.put(message(number), lambda: None)
        while len(outbox):
            await asyncio.sleep(0.01)
        assert first[0] < 0.01
        assert [value for call in sink.calls for value in call] == [b"%d" % n for n in range(200)]
        assert len(sink.calls) < 25


async def test_a_whole_batch_does_not_wait_for_more() -> None:
    sink = Sink()
    sink.takes = 0.001
    loop = asyncio.get_running_loop()
    async with running(sink) as outbox:
        began = loop.time()
        for number in range(10_000):
            outbox.put(message(number), lambda: None)
        while len(outbox):
            await asyncio.sleep(0.001)
        assert [len(call) for call in sink.calls] == [1000] * 10
        assert loop.time() - began < 0.05


@pytest.mark.parametrize("error", [BrokerUnavailable("away"), MessageTooLarge("one of them")])
async def test_what_was_acknowledged_is_settled_at_once_and_not_written_again(error: BrokerError) -> None:
    sink = Sink()
    sink.takes_half = True
    sink.errors = [error, BrokerUnavailable("away still")]
    called: list[int] = []
    async with running(sink) as outbox:
        for number in range(100):
            outbox.put(message(number), partial(called.append, number))
        await asyncio.sleep(0.05)
        assert called[:50] == list(range(0, 100, 2))
        assert len(outbox) == 100 - len(called)
        while len(outbox):
            await asyncio.sleep(0.1)
        assert sorted(called) == list(range(100))
        assert sorted(each.value or b"" for each in sink.written) == sorted(b"%d" % n for n in range(100))
        assert outbox.problem is None


async def test_a_callback_that_fails_ends_the_outbox_and_not_the_broker() -> None:
    sink = Sink()
    outbox = Outbox(sink.produce)

    def fail() -> None:
        raise RuntimeError("a bug")

    outbox.put(message(1), fail)
    with pytest.raises(RuntimeError, match="a bug"):
        await outbox.run()
