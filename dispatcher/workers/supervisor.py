"""Several processes of one group on one machine: started, watched, replaced, stopped.

`dispatcher run --workers 4` is a supervisor and four workers. The supervisor does nothing else; a worker is `dispatcher run` as ever, with a
place (`place.py`) among the others.

1. Each worker has one slot. Its sockets belong to the slot and outlive the process: while a worker is started anew, connections wait.
2. A worker that ends by itself is started anew after a pause, which grows while it keeps ending soon. The others are left alone.
3. Where the first worker ends before it has delivered, with the exit code of a wrong configuration, all end with that code: starting again
   would only repeat the message. The others are started once the first one delivers, or after `_HEAD_START`, so that it is said once.
4. A worker that has given no sign of life for `WATCHDOG_SECONDS` is killed: its event loop hangs.
5. A worker that loses its supervisor stops as it would on SIGTERM: the link is closed with the supervisor's last copy of it.
6. Stopping is SIGTERM to all, and what hasn't ended in time is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from asyncio.subprocess import Process
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import structlog

from dispatcher.runtime.backoff import Backoff
from dispatcher.runtime.service_manager import DELIVERING, READY, WATCHDOG
from dispatcher.runtime.tasks import Tasks
from dispatcher.workers.place import WorkerPlace

log = structlog.get_logger(__name__)

CONFIGURATION: Final = 2
"""The exit code of a wrong command line, configuration, or of what the broker refuses."""

_LONGEST: Final = 30.0  # seconds before a worker is started anew
_LONG: Final = 60.0  # seconds of life after which the pauses begin anew
_HEAD_START: Final = 10.0  # seconds
WATCHDOG_SECONDS: Final = 30.0
_TO_STOP: Final = 8.0  # seconds beyond the drain
_BACKLOG: Final = 128

_NOT_THEIRS: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
"""Variables by which the service manager speaks to the supervisor alone."""

Command = Callable[[WorkerPlace], Sequence[str]]
"""The command line of the worker at a place."""


class CannotBind(Exception):
    """The address for HTTP can't be had; the message says why."""


class Slot:
    """What one worker is started with, again and again."""

    def __init__(self, number: int, listener: socket.socket) -> None:
        self.number = number
        self.listener = listener
        self.process: Process | None = None
        self.started = asyncio.Event()  # its first process, at least, has begun to serve
        self.delivering = asyncio.Event()
        self.beaten = 0.0  # on the loop's clock: the last sign of life

    @property
    def port(self) -> int:
        """Where it serves HTTP."""
        return int(self.listener.getsockname()[1])


class Supervisor:
    """Runs the workers until told to stop."""

    def __init__(
        self,
        command: Command,
        environ: Mapping[str, str],
        *,
        workers: int,
        host: str,
        port: int,
        drain: float,
    ) -> None:
        """`host`, `port`: where the first worker serves HTTP; `drain`: seconds that a worker takes to stop.

        Raises CannotBind.
        """
        self._command = command
        self._environ = {name: value for name, value in environ.items() if name not in _NOT_THEIRS}
        self._drain = drain
        self._slots = [Slot(1, listening(host, port))]
        self._slots += [Slot(number, listening("127.0.0.1", 0)) for number in range(2, workers + 1)]
        self._ports = tuple(slot.port for slot in self._slots[1:])
        self._tasks = Tasks(self._failed)
        self._stopping = False
        self._over = asyncio.Event()
        self._code = 0

    @property
    def port(self) -> int:
        """Where the first worker serves HTTP."""
        return self._slots[0].port

    async def started(self) -> None:
        """Return when the first worker serves HTTP: its settings and subscriptions are right."""
        await self._slots[0].started.wait()

    def problems(self) -> list[str]:
        """Which workers don't deliver, a sentence each."""
        return [
            f"worker {slot.number} does not deliver yet"
            for slot in self._slots
            if not slot.delivering.is_set()
        ]

    async def run(self) -> int:
        """Until `stop`, or until it makes no sense to go on; the exit code."""
        self._tasks.start(self._keep_all(), "start workers")
        await self._over.wait()
        await self._end_all()
        await self._tasks.stop()
        for slot in self._slots:
            slot.listener.close()
        return self._code

    def stop(self) -> None:
        """Have all end."""
        self._stopping = True
        self._over.set()

    def kill(self) -> None:
        """Have all end at once. What they haven't committed is delivered again."""
        self.stop()
        self._send_all(signal.SIGKILL)

    def reload(self) -> None:
        """Have every worker read the subscriptions file again."""
        self._send_all(signal.SIGHUP)

    async def _keep_all(self) -> None:
        first, *others = self._slots
        self._tasks.start(self._keep(first), "worker 1")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_HEAD_START):
                await first.delivering.wait()
        for slot in others:
            self._tasks.start(self._keep(slot), f"worker {slot.number}")

    async def _keep(self, slot: Slot) -> None:
        """Rules 2 and 3."""
        loop = asyncio.get_running_loop()
        backoff = Backoff(longest=_LONGEST)
        once = False
        while True:
            began = loop.time()
            code = await self._live(slot)
            once = once or slot.delivering.is_set()
            slot.delivering.clear()
            if self._stopping:
                return
            if code == CONFIGURATION and not once and slot.number == 1:
                self._code = code
                self._over.set()
                return
            if loop.time() - began >= _LONG:
                backoff.succeeded()
            pause = backoff.failed()
            log.error("worker ended, starting it anew", worker=slot.number, how=_how(code), pause=pause)
            await asyncio.sleep(pause)

    async def _live(self, slot: Slot) -> int:
        """One process, from its start to its end; its exit code."""
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        with theirs:
            place = WorkerPlace(slot.number, theirs.fileno(), slot.listener.fileno(), self._ports)
            slot.process = process = await asyncio.create_subprocess_exec(
                *self._command(place),
                env=self._environ,
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(place.link, place.listener),
                start_new_session=True,  # Ctrl-C is the supervisor's to hand on
            )
        log.info("worker started", worker=slot.number, pid=process.pid)
        slot.beaten = loop.time()
        reader, writer = await asyncio.open_connection(sock=ours)
        watching = Tasks()
        watching.start(self._listen(slot, reader), "listen to a worker")
        watching.start(self._watch(slot, process), "watch a worker")
        try:
            return await process.wait()
        finally:
            await watching.stop()
            writer.close()
            slot.process = None

    async def _listen(self, slot: Slot, reader: asyncio.StreamReader) -> None:
        loop = asyncio.get_running_loop()
        while line := (await reader.readline()).decode().strip():
            if line == WATCHDOG:
                slot.beaten = loop.time()
            elif line == READY:
                slot.started.set()
            elif line == DELIVERING:
                slot.delivering.set()
            elif line.startswith("STATUS=not ready"):
                slot.delivering.clear()

    async def _watch(self, slot: Slot, process: Process) -> None:
        loop = asyncio.get_running_loop()
        while True:
            left = slot.beaten + WATCHDOG_SECONDS - loop.time()
            if left <= 0:
                break
            await asyncio.sleep(left)
        log.error("worker gives no sign of life, killing it", worker=slot.number, pid=process.pid)
        with contextlib.suppress(ProcessLookupError):
            process.kill()

    async def _end_all(self) -> None:
        self._stopping = True
        self._send_all(signal.SIGTERM)
        running = [process for slot in self._slots if (process := slot.process) is not None]
        try:
            async with asyncio.timeout(self._drain + _TO_STOP):
                codes = await asyncio.gather(*(process.wait() for process in running))
        except TimeoutError:
            log.error("workers did not end in time, killing them", seconds=self._drain + _TO_STOP)  # noqa: TRY400 - no traceback helps
            self._send_all(signal.SIGKILL)
            codes = await asyncio.gather(*(process.wait() for process in running))
        if self._code == 0 and any(codes):
            self._code = 1

    def _send_all(self, number: signal.Signals) -> None:
        for slot in self._slots:
            if slot.process is not None:
                with contextlib.suppress(ProcessLookupError):
                    slot.process.send_signal(number)

    def _failed(self, task: str, error: BaseException) -> None:
        log.critical("the supervisor failed, stopping", part=task, exc_info=error)
        self._code = 1
        self._over.set()


def listening(host: str, port: int) -> socket.socket:
    """A listening socket. Raises CannotBind."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise CannotBind(
            f"can't listen on {host}:{port}: {error} (settings http.host and http.port)"
        ) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise CannotBind(
            f"can't listen on {host}:{port}: {error.strerror or error} (settings http.host and http.port)"
        ) from error
    return listener


def _how(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"
