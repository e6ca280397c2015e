"""Tenants, strangers and endpoints that mean the daemon no good: a process of their own, which draws from a seed what it does.

`python -m tests.torture.attackers` reads one line of JSON (`Target`), writes a line once it is at its worst, and goes on until its standard input
ends. Then it writes what answers each attack got. It has a lower priority: the machines of those who attack a daemon are not the daemon's.

hang      subscriptions on many origins that never answer, with the longest timeout and the most attempts that there may be
share     subscriptions to the origin of honest endpoints that never answer either
idle      connections to the API that say nothing
upload    events of 8 MiB whose last byte never comes
arrays    arrays of a million numbers, which are refused
batches   batches of a thousand events that nobody wants
schemas   events that take seconds to be compared with their schema
endless   endpoints that send interim responses, fields and bodies without end, or a byte a second
files     FIFOs, holes of a tebibyte and garbage in place of the subscriptions file
ask       the metrics, the documentation, the history, again and again, also with keys that are none
churn     subscriptions that are made, changed and deleted
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sys
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import orjson

from tests.e2e.hostile import Caller, events
from tests.ports import free_port
from tests.zoo.behaviours import (
    CHUNKED,
    EARLY,
    OK,
    answers,
    chunked,
    drips,
    floods,
    never_answers,
    never_reads,
)
from tests.zoo.server import Script, Zoo

ADDRESS: Final = "127.0.9.9"
"""Where they call from: the honest ones don't share their address with them."""
EVIL: Final = "evil.event"
"""What the subscriptions of attackers want."""
COSTLY: Final = "evil.costly"
"""A type whose schema takes long to compare."""
COSTLY_SCHEMA: Final = {"schema": {"properties": {"n": {"items": {"multipleOf": 0.01}}}}}

_UPLOAD: Final = 8 << 20
_MILLION: Final = b"[" + b",".join([b"123456"] * 1_000_000) + b"]"
_NUMBERS: Final = b"[" + b",".join([b"1e300"] * 50_000) + b"]"
_HOLE: Final = 1 << 40
_WARM: Final = 2.0  # seconds until they are all at it
_NICE: Final = 5
_PAUSE: Final = (
    0.02  # seconds between two requests of one caller: it takes no more of the machine than it takes to ask
)
_ENDLESS: Final[tuple[Script, ...]] = (
    floods(b"", EARLY * 999),
    floods(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 999),
    floods(CHUNKED, chunked(b"x" * 4096)[: -len(b"0\r\n\r\n")]),
    drips(b"HTTP/1.1 200 OK\r\n", b"X-Slow: yes\r\n" * 999, 1.0),
    never_reads,
)


class Target(msgspec.Struct):
    """What is attacked."""

    seed: int
    port: int
    keys: list[str]
    """Of tenants that are hostile, each with all that a tenant's key can do."""
    shared: list[str]
    """Origins of honest endpoints; below /hang they never answer."""
    file: str
    """The subscriptions file."""


class Attackers:
    """All that a seed does at a time."""

    def __init__(self, target: Target) -> None:
        self.answers: Counter[str] = Counter()
        self._target = target
        self._draw = random.Random(f"attack {target.seed}")
        self._honest_file = Path(target.file).read_bytes()
        self._made = 0
        self._zoo = Zoo()

    async def run(self) -> None:
        """Until cancelled."""
        async with self._zoo, asyncio.TaskGroup() as group:
            for name, attack in chosen(self._target.seed):
                group.create_task(attack(self), name=name)

    # What there is to do with.

    def _caller(self, key: str | None = None, *, none: bool = False) -> Caller:
        return Caller(
            self._target.port, None if none else key or self._draw.choice(self._target.keys), ADDRESS
        )

    async def _call(
        self, attack: str, caller: Caller, method: str, path: str, body: bytes = b""
    ) -> tuple[int, bytes]:
        try:
            status, answer = await caller(method, path, body)
        except OSError:
            status, answer = 0, b""
            caller.close()
        self.answers[f"{attack} {status}"] += 1
        return status, answer

    async def _again_and_again(
        self, attack: str, callers: int, request: Callable[[], tuple[str, str, bytes]], *, none: bool = False
    ) -> None:
        async def one() -> None:
            caller = self._caller(none=none)
            while True:
                await self._call(attack, caller, *request())
                await asyncio.sleep(_PAUSE)

        async with asyncio.TaskGroup() as group:
            for _ in range(callers):
                group.create_task(one())

    async def _subscribe(self, attack: str, caller: Caller, url: str, **more: object) -> tuple[int, str]:
        wanted = {"url": url, "event_types": [EVIL], **more}
        status, body = await self._call(attack, caller, "POST", "/v1/subscriptions", orjson.dumps(wanted))
        return status, orjson.loads(body)["subscription"]["id"] if status == 201 else ""

    def _events(self, count: int, type_: str = EVIL) -> bytes:
        self._made += count
        return events([f"evil_{os.getpid()}_{self._made - number}" for number in range(count)], type_)

    async def _publish(self, attack: str, key: str, most: int) -> None:
        """What the subscriptions of that key's tenant are owed, more and more of it."""
        caller = self._caller(key)
        while True:
            await self._call(attack, caller, "POST", "/v1/events", self._events(self._draw.randint(1, most)))
            await asyncio.sleep(self._draw.uniform(0.2, 1.0))

    # What they do.

    async def hang(self) -> None:
        hosts = [f"127.201.{number}.1" for number in range(self._draw.choice((20, 50)))]
        port = free_port()
        for host in hosts:
            await self._zoo.serve(never_answers, host, port)
        async with asyncio.TaskGroup() as group:
            for key in self._target.keys[: self._draw.randint(1, len(self._target.keys))]:
                caller = self._caller(key)
                for host in hosts:
                    await self._subscribe(
                        "hang", caller, f"http://{host}:{port}/", timeout="60s", max_in_flight=100
                    )
                group.create_task(self._publish("hang", key, 64))

    async def share(self) -> None:
        key = self._draw.choice(self._target.keys)
        caller = self._caller(key)
        for origin in self._target.shared:
            for _ in range(2):
                await self._subscribe("share", caller, f"{origin}/hang", timeout="60s", max_in_flight=100)
        await self._publish("share", key, 64)

    async def idle(self) -> None:
        held: list[asyncio.StreamWriter] = []
        wanted = self._draw.choice((200, 600))
        try:
            while True:
                held = [writer for writer in held if not writer.is_closing()]
                for _ in range(wanted - len(held)):
                    with contextlib.suppress(OSError):
                        opened = await asyncio.open_connection(
                            "127.0.0.1", self._target.port, local_addr=(ADDRESS, 0)
                        )
                        held.append(opened[1])
                self.answers["idle opened"] += 1
                await asyncio.sleep(0.5)
        finally:
            for writer in held:
                writer.close()

    async def upload(self) -> None:
        body = b"[" + b" " * (_UPLOAD - 2)

        async def one(key: str) -> None:
            while True:
                caller = self._caller(key)
                with contextlib.suppress(OSError, TimeoutError):
                    await caller.begin("POST", "/v1/events", body, _UPLOAD)
                    status, _ = await caller.answer(120.0)
                    self.answers[f"upload {status}"] += 1
                caller.close()
                await asyncio.sleep(0.5)

        async with asyncio.TaskGroup() as group:
            for number in range(8):
                group.create_task(one(self._target.keys[number % len(self._target.keys)]))

    async def arrays(self) -> None:
        await self._again_and_again(
            "arrays", self._draw.randint(1, 3), lambda: ("POST", "/v1/events", _MILLION)
        )

    async def batches(self) -> None:
        await self._again_and_again(
            "batches",
            self._draw.randint(1, 4),
            lambda: ("POST", "/v1/events", self._events(1000, "unwanted.event")),
        )

    async def schemas(self) -> None:
        def request() -> tuple[str, str, bytes]:
            self._made += 1
            id_ = f"evil_{os.getpid()}_{self._made}"
            head = f'{{"type":"{COSTLY}","id":"{id_}","data":{{"n":'.encode()
            return "POST", "/v1/events", head + _NUMBERS + b"}}"

        await self._again_and_again("schemas", self._draw.randint(1, 3), request)

    async def endless(self) -> None:
        key = self._draw.choice(self._target.keys)
        caller = self._caller(key)
        for script in _ENDLESS:
            port = await self._zoo.serve(script)
            await self._subscribe("endless", caller, f"http://127.0.0.1:{port}/", timeout="20s")
        await self._publish("endless", key, 8)

    async def files(self) -> None:
        file = Path(self._target.file)
        new = file.with_suffix(".other")

        def hole() -> None:
            with new.open("wb") as opened:
                opened.truncate(_HOLE)

        bad: Sequence[Callable[[], object]] = (
            lambda: os.mkfifo(new),
            hole,
            lambda: new.write_bytes(b"subscriptions: [" * 100_000),
            lambda: new.write_bytes(b"\xff" * 100_000),
        )
        try:
            while True:
                self._draw.choice(bad)()
                new.replace(file)
                self.answers["files replaced"] += 1
                await asyncio.sleep(self._draw.uniform(0.5, 3.0))
        finally:
            new.write_bytes(self._honest_file)
            new.replace(file)

    async def ask(self) -> None:
        paths = ("/metrics", "/docs/swagger-ui-bundle.js", "/v1/deliveries?limit=200", "/openapi.json")

        def request() -> tuple[str, str, bytes]:
            return "GET", self._draw.choice(paths), b""

        async with asyncio.TaskGroup() as group:
            group.create_task(self._again_and_again("ask", self._draw.randint(1, 4), request))
            group.create_task(self._again_and_again("ask without a key", 2, request, none=True))

    async def churn(self) -> None:
        caller = self._caller()
        port = await self._zoo.serve(answers(OK))
        while True:
            status, id_ = await self._subscribe("churn", caller, f"http://127.0.0.1:{port}/")
            if status == 201:
                path = f"/v1/subscriptions/{id_}"
                await self._call("churn", caller, "POST", f"{path}/pause")
                await self._call("churn", caller, "DELETE", path)
            await asyncio.sleep(_PAUSE)


ATTACKS: Final[dict[str, Callable[[Attackers], Coroutine[Any, Any, None]]]] = {
    attack.__name__: attack
    for attack in (
        Attackers.hang,
        Attackers.share,
        Attackers.idle,
        Attackers.upload,
        Attackers.arrays,
        Attackers.batches,
        Attackers.schemas,
        Attackers.endless,
        Attackers.files,
        Attackers.ask,
        Attackers.churn,
    )
}


def chosen(seed: int) -> list[tuple[str, Callable[[Attackers], Coroutine[Any, Any, None]]]]:
    """What that seed does at a time: three to six of them."""
    draw = random.Random(f"attacks {seed}")
    return sorted(draw.sample(sorted(ATTACKS.items()), draw.randint(3, 6)))


async def _until_told() -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(loop=loop)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    target = msgspec.json.decode(await reader.readline(), type=Target)
    attackers = Attackers(target)
    attacking = loop.create_task(attackers.run())
    await asyncio.wait({attacking}, timeout=_WARM)
    sys.stdout.buffer.write(b"at it\n")
    sys.stdout.buffer.flush()
    told = loop.create_task(reader.read())
    await asyncio.wait({attacking, told}, return_when=asyncio.FIRST_COMPLETED)
    if attacking.done():
        await attacking  # it does not end by itself
    attacking.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await attacking
    sys.stdout.buffer.write(orjson.dumps(attackers.answers))


if __name__ == "__main__":
    os.nice(_NICE)
    asyncio.run(_until_told())
