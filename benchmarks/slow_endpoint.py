"""An endpoint that answers each request with 200 after so many seconds. Prints its port.

python -m benchmarks.slow_endpoint 3.0 127.0.0.1 127.0.0.2
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import cast

import uvloop

from benchmarks.harness import free_port

_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


class Protocol(asyncio.Protocol):
    """One connection; knows as much of HTTP as the dispatcher's requests need."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found:
            return
        length = next(
            int(line.partition(b":")[2])
            for line in head.lower().split(b"\r\n")
            if line.startswith(b"content-length:")
        )
        if len(body) >= length:
            self._received = b""
            self._loop.call_later(self._seconds, self._answer)

    def _answer(self) -> None:
        if not self._transport.is_closing():
            self._transport.write(_ANSWER)


async def _serve(seconds: float, hosts: Sequence[str]) -> None:
    port = free_port()
    loop = asyncio.get_running_loop()
    for host in hosts:
        await loop.create_server(lambda: Protocol(seconds), host, port, backlog=4096)
    print(port, flush=True)
    await asyncio.Event().wait()  # until it is ended


if __name__ == "__main__":
    uvloop.run(_serve(float(sys.argv[1]), sys.argv[2:]))
