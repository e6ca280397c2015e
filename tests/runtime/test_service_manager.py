"""What systemd would hear, by a socket of ours."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from dispatcher.runtime.service_manager import READY, ServiceManager


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.setblocking(False)
        yield listener


def heard(listener: socket.socket) -> list[str]:
    messages = []
    while True:
        try:
            messages.append(listener.recv(65536).decode())
        except BlockingIOError:
            return messages


def test_a_message_is_one_datagram_of_lines(listener: socket.socket) -> None:
    manager = ServiceManager.of({"NOTIFY_SOCKET": listener.getsockname()})
    manager.tell(READY, "STATUS=well")
    assert heard(listener) == ["READY=1\nSTATUS=well\n"]
    manager.close()
    manager.tell(READY)
    assert heard(listener) == []


def test_an_abstract_socket_is_named_with_an_at() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0dispatcher-test-{os.getpid()}")
        listener.setblocking(False)
        ServiceManager.of({"NOTIFY_SOCKET": f"@dispatcher-test-{os.getpid()}"}).tell(READY)
        assert heard(listener) == ["READY=1\n"]


@pytest.mark.parametrize("address", ["", "vsock:2:1234", "relative", "/there/is/none"])
async def test_without_a_service_manager_nothing_happens(address: str) -> None:
    manager = ServiceManager.of({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000000"})
    manager.tell(READY)
    await asyncio.wait_for(manager.beat(list), 5)


def test_one_that_does_not_read_holds_nobody_up(listener: socket.socket) -> None:
    manager = ServiceManager.of({"NOTIFY_SOCKET": listener.getsockname()})
    for _ in range(10_000):
        manager.tell(READY)
    assert 0 < len(heard(listener)) < 10_000
    listener.close()
    manager.tell(READY)


async def beats(listener: socket.socket, environ: dict[str, str], problems: list[list[str]]) -> list[str]:
    """What is heard while it goes through `problems`, one after the other."""
    manager = ServiceManager.of({"NOTIFY_SOCKET": listener.getsockname(), **environ})
    left = iter(problems)
    over = asyncio.Event()

    def now() -> list[str]:
        found = next(left, None)
        if found is None:
            over.set()
            return problems[-1]
        return found

    task = asyncio.ensure_future(manager.beat(now))  # noqa: TID251 - ended below
    await over.wait()
    task.cancel()
    return heard(listener)


async def test_the_watchdog_is_told_well_before_it_would_bite(listener: socket.socket) -> None:
    said = await beats(listener, {"WATCHDOG_USEC": "30000"}, [["no broker"], ["no broker"], [], []])
    assert said[:6] == [
        "STATUS=not ready: no broker\n",
        "WATCHDOG=1\n",
        "WATCHDOG=1\n",
        "STATUS=ready\nX_DELIVERING=1\n",
        "WATCHDOG=1\n",
        "WATCHDOG=1\n",
    ]


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "30000", "WATCHDOG_PID": "1"},
    ],
)
async def test_where_nobody_watches_only_changes_are_told(
    listener: socket.socket, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dispatcher.runtime.service_manager._STATUS_INTERVAL", 0.001)
    said = await beats(listener, environ, [["a\nb", "c" * 2000], [], [], []])
    assert said == [f"STATUS=not ready: a b; {'c' * 984}\n", "STATUS=ready\nX_DELIVERING=1\n"]
