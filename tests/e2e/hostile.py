"""A daemon among callers and endpoints that mean it no good: the process, an endpoint that takes what it delivers, and the attackers."""

from __future__ import annotations

import asyncio
import re
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import orjson

from tests.commands.console import end, environment
from tests.e2e.daemon import Daemon

_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)
_ID = re.compile(rb"\r\nwebhook-id: *([^\r]+)", re.IGNORECASE)
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


class _Receiver(asyncio.Protocol):
    """Answers with 200 at once what the endpoint takes, and nothing else at all."""

    def __init__(self, endpoint: QuickEndpoint) -> None:
        self._endpoint = endpoint
        self._data = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        while (end := self._data.find(b"\r\n\r\n")) >= 0:
            head = self._data[: end + 2]
            length = _LENGTH.search(head)
            size = end + 4 + (int(length[1]) if length else 0)
            if len(self._data) < size:
                return
            self._data = self._data[size:]
            id_ = _ID.search(head)
            if self._endpoint.take(head.split(b" ", 2)[1], b"" if id_ is None else id_[1]):
                self._endpoint.answer(self._write)

    def _write(self) -> None:
        assert self._transport is not None
        self._transport.write(_ANSWER)


class QuickEndpoint:
    """An endpoint in a thread of its own, so that it answers whatever the test's loop does."""

    def __init__(self, hosts: Sequence[str] = ("127.0.0.1",), port: int = 0) -> None:
        """`port` 0: one that the system chooses; then there is one host."""
        self.ids: set[bytes] = set()
        self.port = port
        self._hosts = hosts
        self._held: list[Callable[[], None]] | None = None
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def take(self, path: bytes, id_: bytes) -> bool:
        """A whole request has come; whether it is answered."""
        self.ids.add(id_)
        return True

    def answer(self, write: Callable[[], None]) -> None:
        """Write an answer; where answers are held, not before they aren't."""
        if self._held is None:
            write()
        else:
            self._held.append(write)

    def hold(self) -> None:
        """Answer nothing until `release`."""
        self._loop.call_soon_threadsafe(self._hold)

    def release(self) -> None:
        self._loop.call_soon_threadsafe(self._release)

    def _hold(self) -> None:
        self._held = []

    def _release(self) -> None:
        held, self._held = self._held, None
        for write in held or ():
            write()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)

    def _run(self) -> None:
        server = self._loop.run_until_complete(
            self._loop.create_server(lambda: _Receiver(self), self._hosts, self.port, backlog=1024)
        )
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        self._loop.run_until_complete(asyncio.sleep(0))


class HostileDaemon(Daemon):
    """`dispatcher run` in a process, started and ended without a loop: several tests have it."""

    def __init__(self, folder: Path, endpoint: QuickEndpoint, *keys: str, **settings: Any) -> None:
        super().__init__(
            folder,
            f"sqlite:///{folder}/log.db",
            [{"id": "honest", "url": endpoint.url, "event_types": ["honest.*"]}],
            **settings,
        )
        self.environ = {"DISPATCHER_API__KEYS": ",".join(keys)}
        self._popen: subprocess.Popen[bytes] | None = None

    def start_with(self, descriptors: int) -> None:
        """Start it with so many file descriptors."""
        limited = ["sh", "-c", f'ulimit -n {descriptors} && exec "$@"', "sh"]
        with self.output.open("ab") as output:
            self._popen = subprocess.Popen(
                [*limited, *self.command, "run", "--config", str(self.settings_file)],
                cwd=self.folder,
                env=environment(self.environ),
                stdout=output,
                stderr=output,
            )

    def descriptors(self) -> int:
        """How many it has open."""
        assert self._popen is not None
        return len(list(Path(f"/proc/{self._popen.pid}/fd").iterdir()))

    @property
    def running(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    def end(self) -> None:
        assert self._popen is not None
        end(self._popen)


class Caller:
    """One connection to the API that says what it likes."""

    def __init__(self, port: int, key: str | None = None, source: str = "127.0.0.1") -> None:
        """`source`: the address that it calls from."""
        self._port = port
        self._key = key
        self._source = source
        self._stream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._stream is None:
            self._stream = await asyncio.open_connection(
                "127.0.0.1", self._port, local_addr=(self._source, 0)
            )
        return self._stream

    def close(self) -> None:
        if self._stream is not None:
            self._stream[1].close()
            self._stream = None

    def head(self, method: str, path: str, length: int, kind: str = "application/json") -> bytes:
        key = "" if self._key is None else f"Authorization: Bearer {self._key}\r\n"
        return (
            f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{key}Content-Type: {kind}\r\n"
            f"Content-Length: {length}\r\n\r\n"
        ).encode()

    async def begin(self, method: str, path: str, body: bytes, length: int) -> None:
        """Send the head, which promises so many bytes, and these of the body."""
        _, writer = await self.connect()
        writer.write(self.head(method, path, length) + body)
        try:
            async with asyncio.timeout(20):
                await writer.drain()
        except (TimeoutError, ConnectionError):
            pass  # it isn't read: refused, or held back

    async def answer(self, within: float = 60.0) -> tuple[int, bytes]:
        """The answer to what was sent: its status, and its body. Status 0: the connection was closed."""
        reader, _ = await self.connect()
        try:
            async with asyncio.timeout(within):
                head = await reader.readuntil(b"\r\n\r\n")
                length = _LENGTH.search(head)
                body = await reader.readexactly(int(length[1]) if length else 0)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.close()
            return 0, b""
        if b"\r\nconnection: close" in head.lower():
            self.close()
        return int(head.split(b" ", 2)[1]), body

    async def __call__(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        await self.begin(method, path, body, len(body))
        return await self.answer()


def events(ids: Sequence[str], kind: str = "honest.event") -> bytes:
    return orjson.dumps([{"type": kind, "id": id_, "data": {"n": 1}} for id_ in ids])


async def eventually_all(endpoint: QuickEndpoint, ids: Sequence[str], alive: Callable[[], bool]) -> None:
    """Wait until all of these have been delivered."""
    wanted = {id_.encode() for id_ in ids}
    async with asyncio.timeout(120):
        while not wanted <= endpoint.ids:
            assert alive(), "the daemon ended"
            await asyncio.sleep(0.02)
