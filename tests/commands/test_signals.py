from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest

from dispatcher.commands import signals
from dispatcher.commands.signals import handle_signals


@pytest.fixture
def handled() -> Iterator[asyncio.Queue[str]]:
    """What signals to this process call."""
    called: asyncio.Queue[str] = asyncio.Queue()
    yield called
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler if number is signal.SIGINT else signal.SIG_DFL)


def handle(called: asyncio.Queue[str]) -> None:
    handle_signals(
        stop=lambda: called.put_nowait("stop"),
        stop_at_once=lambda number: called.put_nowait(f"at once: {number.name}"),
        reload=lambda: called.put_nowait("reload"),
    )


async def test_the_first_stops_and_a_later_one_stops_at_once(
    handled: asyncio.Queue[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    handle(handled)
    os.kill(os.getpid(), signal.SIGHUP)
    assert await handled.get() == "reload"
    os.kill(os.getpid(), signal.SIGTERM)
    assert await handled.get() == "stop"
    monkeypatch.setattr(signals, "_SAME_SIGNAL", 0.0)
    os.kill(os.getpid(), signal.SIGINT)
    assert await handled.get() == "at once: SIGINT"


async def test_the_same_signal_sent_twice_is_meant_once(handled: asyncio.Queue[str]) -> None:
    handle(handled)
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0)
    os.kill(os.getpid(), signal.SIGHUP)  # comes behind them
    assert await handled.get() == "stop"
    assert await handled.get() == "reload"
