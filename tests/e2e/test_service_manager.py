"""The daemon under a service manager, which is a socket of ours."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.e2e.daemon import Daemon


class Heard:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)

    async def until(self, line: str, times: int = 1) -> None:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(60):
            while self.lines.count(line) < times:
                self.lines += (await loop.sock_recv(self._socket, 65536)).decode().splitlines()

    async def silence(self) -> None:
        """Until nothing has come for longer than two signs of life are apart."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                async with asyncio.timeout(1):
                    self.lines += (await loop.sock_recv(self._socket, 65536)).decode().splitlines()
            except TimeoutError:
                return

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
async def heard(tmp_path: Path) -> AsyncIterator[Heard]:
    heard = Heard(tmp_path / "notify")
    yield heard
    heard.close()


async def test_it_says_that_it_has_started_how_it_goes_and_that_it_stops(
    tmp_path: Path, heard: Heard
) -> None:
    daemon = Daemon(tmp_path, f"sqlite:///{tmp_path}/log.db", [])
    daemon.environ = {"NOTIFY_SOCKET": str(heard.path), "WATCHDOG_USEC": "600000"}
    await daemon.start(ready=False)
    await heard.until("READY=1")
    await heard.until("STATUS=ready")
    assert await daemon.stop() == 0
    await heard.until("STOPPING=1")


async def test_a_loop_that_hangs_gives_no_sign_of_life(tmp_path: Path, heard: Heard) -> None:
    daemon = Daemon(tmp_path, f"sqlite:///{tmp_path}/log.db", [])
    daemon.environ = {"NOTIFY_SOCKET": str(heard.path), "WATCHDOG_USEC": "600000"}
    await daemon.start()
    await heard.until("WATCHDOG=1", 3)
    daemon.signal(signal.SIGSTOP)
    await heard.silence()
    before = heard.lines.count("WATCHDOG=1")
    daemon.signal(signal.SIGCONT)
    await heard.until("WATCHDOG=1", before + 1)
    assert await daemon.stop() == 0


async def test_a_start_that_fails_is_not_said_to_have_succeeded(tmp_path: Path, heard: Heard) -> None:
    daemon = Daemon(tmp_path, f"sqlite:///{tmp_path}/log.db", [{"id": "no url"}])
    daemon.environ = {"NOTIFY_SOCKET": str(heard.path)}
    await daemon.start(ready=False)
    assert await daemon.ended() == 2
    await heard.until("STOPPING=1")
    assert "READY=1" not in heard.lines
