"""The supervisor over small processes that do as they are told, and say what happens to them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Final

import pytest

from dispatcher.workers import supervisor as module
from dispatcher.workers.place import WorkerPlace
from dispatcher.workers.supervisor import CannotBind, Supervisor, listening
from tests.ports import free_port

# Arguments: where to tell, how each worker behaves, and the place. `well` beats and ends on SIGTERM.
_WORKER: Final = """
import os, select, signal, socket, sys
path, modes, place = sys.argv[1:]
number, link, listener, ports = place.split(":")
link, mode = socket.socket(fileno=int(link)), modes.split(",")[int(number) - 1]
told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
told.connect(path)
def tell(what): told.send(f"{number} {os.getpid()} {what}".encode())
def say(line):
    try: link.sendall(line)
    except OSError: pass  # the supervisor is gone: seen below
def end(*_):
    tell("term")
    if mode != "stubborn": os._exit(0)
signal.signal(signal.SIGTERM, end)
signal.signal(signal.SIGHUP, lambda *_: tell("hup"))
tell("started " + ("service" if "NOTIFY_SOCKET" in os.environ else "alone"))
if mode.startswith("exit"): os._exit(int(mode[4:]))
say(b"READY=1\\nX_DELIVERING=1\\n")
while True:
    if select.select([link], [], [], 0.01)[0]:
        tell("orphan")
        os._exit(0)
    if mode != "silent": say(b"WATCHDOG=1\\n")
"""


class Told:
    """What the workers say, in the order in which they say it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)

    async def next(self, what: str, worker: int | None = None) -> tuple[int, int]:
        """Wait until a worker says that; its number and process. What else is said meanwhile is passed over."""
        async with asyncio.timeout(60):
            while True:
                said = await asyncio.get_running_loop().sock_recv(self._socket, 1000)
                number, pid, words = said.decode().split(" ", 2)
                if words.startswith(what) and worker in (None, int(number)):
                    return int(number), int(pid)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def told(tmp_path: Path) -> Told:
    return Told(tmp_path / "told")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dispatcher.runtime.backoff._PAUSES", (0.01, 0.02))


def make(told: Told, modes: Sequence[str], **environ: str) -> Supervisor:
    def command(place: WorkerPlace) -> Sequence[str]:
        return [sys.executable, "-S", "-c", _WORKER, str(told.path), ",".join(modes), str(place)]

    return Supervisor(
        command, {**os.environ, **environ}, workers=len(modes), host="127.0.0.1", port=0, drain=5
    )


@contextlib.asynccontextmanager
async def running(supervisor: Supervisor) -> AsyncIterator[asyncio.Future[int]]:
    task = asyncio.ensure_future(supervisor.run())  # noqa: TID251 - awaited below
    try:
        yield task
    finally:
        supervisor.kill()
        await task


async def test_all_are_started_and_stopped(told: Told) -> None:
    supervisor = make(told, ["well"] * 3, NOTIFY_SOCKET="/run/systemd/notify")
    async with running(supervisor) as task:
        assert {(await told.next("started alone"))[0] for _ in range(3)} == {1, 2, 3}
        await supervisor.started()
        supervisor.reload()
        assert {(await told.next("hup"))[0] for _ in range(3)} == {1, 2, 3}
        supervisor.stop()
        assert {(await told.next("term"))[0] for _ in range(3)} == {1, 2, 3}
        assert await task == 0


async def test_a_worker_that_dies_is_replaced_and_the_others_are_left_alone(told: Told) -> None:
    supervisor = make(told, ["well"] * 2)
    async with running(supervisor):
        pids = dict([await told.next("started"), await told.next("started")])
        for _ in range(3):
            os.kill(pids[2], signal.SIGKILL)
            number, pid = await told.next("started")
            assert number == 2
            assert pid != pids[2]
            pids[2] = pid
        os.kill(pids[1], signal.SIGHUP)
        assert await told.next("hup") == (1, pids[1])


async def test_a_wrong_configuration_is_said_once_and_ends_all(told: Told) -> None:
    supervisor = make(told, ["exit2", "well"])
    async with running(supervisor) as task:
        assert (await told.next("started"))[0] == 1
        assert await task == 2
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await told.next("started")


async def test_another_exit_at_the_start_is_tried_again(told: Told) -> None:
    supervisor = make(told, ["exit1"])
    async with running(supervisor):
        for _ in range(4):
            await told.next("started")
        assert supervisor.problems() == ["worker 1 does not deliver yet"]


async def test_the_second_worker_ending_with_a_refusal_ends_nobody(told: Told) -> None:
    supervisor = make(told, ["well", "exit2"])
    async with running(supervisor) as task:
        for _ in range(3):
            await told.next("started", 2)
        assert not task.done()
        assert supervisor.problems() == ["worker 2 does not deliver yet"]


async def test_a_worker_without_a_sign_of_life_is_killed(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WATCHDOG_SECONDS", 0.3)
    supervisor = make(told, ["silent"])
    async with running(supervisor):
        assert await told.next("started") != await told.next("started")


async def test_what_does_not_end_in_time_is_killed(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TO_STOP", -4.9)
    supervisor = make(told, ["stubborn", "well"])
    async with running(supervisor) as task:
        for number in (1, 2):
            await told.next("started", number)
        supervisor.stop()
        assert await task == 1


async def test_connections_wait_while_the_first_worker_is_started_anew(told: Told) -> None:
    supervisor = make(told, ["exit1"])
    async with running(supervisor):
        await told.next("started")
        _, writer = await asyncio.open_connection("127.0.0.1", supervisor.port)
        writer.close()


async def test_workers_stop_when_their_supervisor_is_gone(told: Told) -> None:
    program = f"""
import asyncio, os, sys
from dispatcher.workers.supervisor import Supervisor
worker = {_WORKER!r}
command = lambda place: [sys.executable, "-S", "-c", worker, {str(told.path)!r}, "well,well", str(place)]
asyncio.run(Supervisor(command, os.environ, workers=2, host="127.0.0.1", port=0, drain=5).run())
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program)
    pids = dict([await told.next("started"), await told.next("started")])
    process.kill()
    await process.wait()
    assert dict([await told.next("orphan"), await told.next("orphan")]) == pids


def test_a_port_that_is_taken_is_named() -> None:
    with listening("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CannotBind, match=rf"127\.0\.0\.1:{port}: Address already in use \(settings http"):
            listening("127.0.0.1", port)
    with pytest.raises(CannotBind, match=r"no\.such\.host\.invalid"):
        listening("no.such.host.invalid", free_port())
