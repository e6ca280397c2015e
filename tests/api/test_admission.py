"""What the API does with too many callers, and with slow ones, over real connections."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from structlog.testing import capture_logs

from dispatcher.api import admission, frame
from dispatcher.api.limits import ApiLimits, MinimumRate
from dispatcher.api.server import ApiServer
from dispatcher.telemetry.metrics import Metrics
from tests.api.serving import KEY, problem, serving

HEALTH = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Raw:
    """A server, and connections to it that say what they like."""

    def __init__(self, server: ApiServer, port: int) -> None:
        self.server = server
        self.port = port
        self.streams: list[Stream] = []

    async def connect(self) -> Stream:
        stream = await asyncio.open_connection("127.0.0.1", self.port)
        self.streams.append(stream)
        return stream

    async def ask(self, stream: Stream, request: bytes = HEALTH) -> bytes:
        """The head of the answer; its body is read, too."""
        stream[1].write(request)
        head = await self.head(stream)
        length = int(head.partition(b"Content-Length: ")[2].split(b"\r\n")[0])
        await stream[0].readexactly(length)
        return head

    async def head(self, stream: Stream) -> bytes:
        async with asyncio.timeout(10):
            return await stream[0].readuntil(b"\r\n\r\n")


@asynccontextmanager
async def raw(limits: ApiLimits) -> AsyncIterator[Raw]:
    server = ApiServer("127.0.0.1", 0, Metrics().registry, list, limits=limits)
    port = await server.start()
    made = Raw(server, port)
    try:
        yield made
    finally:
        for _, writer in made.streams:
            writer.close()
        await server.stop()


async def closed(stream: Stream) -> bool:
    async with asyncio.timeout(10):
        try:
            return await stream[0].read() == b""
        except ConnectionError:
            return True


async def test_an_address_has_so_many_connections_and_one_that_goes_makes_room() -> None:
    async with raw(ApiLimits(max_connections_per_address=3)) as api:
        held = [await api.connect() for _ in range(3)]
        for stream in held:
            assert (await api.ask(stream)).startswith(b"HTTP/1.1 200 ")
        refused = await api.connect()
        answer = await api.head(refused)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nRetry-After: 5\r\n" in answer
        assert b"http.max_connections_per_address" in await refused[0].read()
        assert api.server.refused["connections_of_address"] == 1
        held[0][1].close()
        await held[0][1].wait_closed()
        for _ in range(1000):
            stream = await api.connect()
            try:
                if (await api.ask(stream)).startswith(b"HTTP/1.1 200 "):
                    break
            except (ConnectionError, asyncio.IncompleteReadError):
                continue
        else:
            pytest.fail("the connection that went is counted for ever")


async def test_where_there_are_as_many_as_there_may_be_the_longest_idle_one_makes_room() -> None:
    async with raw(ApiLimits(max_connections=10)) as api:
        silent = [await api.connect() for _ in range(5)]
        asking = [await api.connect() for _ in range(5)]
        for stream in asking:
            await api.ask(stream)
        more = [await api.connect() for _ in range(5)]
        for stream in more:
            assert (await api.ask(stream)).startswith(b"HTTP/1.1 200 "), "health is answered whoever waits"
        for stream in silent:
            assert await closed(stream)
        for stream in asking:
            assert (await api.ask(stream)).startswith(b"HTTP/1.1 200 ")
        assert api.server.refused["connections"] == 0


async def test_where_all_are_at_work_a_further_one_is_refused() -> None:
    limits = ApiLimits(max_connections=2)
    async with serving(KEY, limits=limits) as (call, _):
        port = int(call.base.rpartition(":")[2])
        head = (
            f"POST /v1/subscriptions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {KEY}\r\n"
            "Content-Type: application/json\r\nContent-Length: 100\r\nExpect: 100-continue\r\n\r\n"
        ).encode()
        streams = []
        for _ in range(2):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            streams.append(writer)
            writer.write(head)
            assert b" 100 " in await reader.readuntil(b"\r\n\r\n")  # it is being served
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        async with asyncio.timeout(10):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 503 ")
        for stream in (*streams, writer):
            stream.close()


async def test_a_head_that_comes_too_slowly_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "HEAD", MinimumRate(0.05, 1024.0))
    monkeypatch.setattr(admission, "_SWEEP", 0.01)
    async with raw(ApiLimits()) as api:
        slow, idle = await api.connect(), await api.connect()
        slow[1].write(b"GET /healthz HT")
        assert await closed(slow)
        assert api.server.refused["slow_head"] == 1
        assert (await api.ask(idle)).startswith(b"HTTP/1.1 200 "), "one that says nothing is only idle"
        assert (await api.ask(idle)).startswith(b"HTTP/1.1 200 "), "and so is one between two requests"


class Timed(MinimumRate):
    """Knows how many pieces of heads were timed."""

    pieces = 0

    def deadline(self, before: float, size: int, now: float) -> float:
        Timed.pieces += 1
        return super().deadline(before, size, now)


async def test_the_rest_of_a_body_that_was_answered_before_is_no_head(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(admission, "HEAD", Timed(10.0, 1024.0))
    Timed.pieces = 0
    async with raw(ApiLimits()) as api:
        stream = await api.connect()
        post = b"POST /nothing HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n12345"
        assert (await api.ask(stream, post)).startswith(b"HTTP/1.1 404 ")
        stream[1].write(b"67890")
        await asyncio.sleep(0.05)  # so that it comes by itself
        assert (await api.ask(stream)).startswith(b"HTTP/1.1 200 ")
        assert Timed.pieces <= 2


async def test_an_address_that_asks_too_often_is_told_to_wait_and_health_is_not_counted() -> None:
    async with serving(KEY, limits=ApiLimits(requests_per_address=0.01)) as (call, _):
        assert (await call("GET", "/v1/subscriptions")).status == 200
        refused = await call("GET", "/v1/subscriptions")
        problem(refused, 429, "too-many-requests")
        assert 1 <= int(refused.headers["Retry-After"]) <= 100
        problem(await call.using(None)("GET", "/docs"), 429, "too-many-requests")
        for _ in range(5):
            assert (await call("GET", "/healthz")).status == 200
            assert (await call("GET", "/readyz")).status == 200


async def test_a_key_that_is_used_too_often_is_told_to_wait_and_another_one_is_not() -> None:
    other = "other-key-" + "o" * 32
    async with serving(KEY, other, limits=ApiLimits(requests_per_key=0.01)) as (call, _):
        assert (await call("GET", "/v1/subscriptions")).status == 200
        document = problem(await call("GET", "/v1/subscriptions"), 429, "too-many-requests")
        assert "api.requests_per_second" in document["detail"]
        assert (await call.using(other)("GET", "/v1/subscriptions")).status == 200


async def test_limits_count_the_caller_behind_a_trusted_proxy() -> None:
    limits = ApiLimits(
        requests_per_address=0.01, max_connections_per_address=1, trusted_proxies=("127.0.0.0/8",)
    )
    async with serving(KEY, limits=limits) as (call, _):
        for caller, status in (("198.51.100.1", 200), ("198.51.100.1", 429), ("198.51.100.2", 200)):
            headers = {"X-Forwarded-For": f"1.1.1.1, {caller}"}
            assert (await call("GET", "/v1/subscriptions", headers=headers)).status == status
        results = await asyncio.gather(
            *(
                call("GET", "/v1/subscriptions", headers={"X-Forwarded-For": f"198.51.100.{number}"})
                for number in range(10, 20)
            )
        )
        assert {result.status for result in results} == {200}, "a proxy has as many connections as it needs"


async def test_nobody_else_is_believed_about_who_calls() -> None:
    async with serving(KEY, limits=ApiLimits(requests_per_address=0.01)) as (call, _):
        for number, status in ((1, 200), (2, 429)):
            headers = {"X-Forwarded-For": f"198.51.100.{number}"}
            assert (await call("GET", "/v1/subscriptions", headers=headers)).status == status


async def test_wrong_keys_are_counted_of_the_caller_behind_a_trusted_proxy() -> None:
    few = {"api": {"keys": (KEY,), "wrong_keys_per_minute": 2}}
    async with serving(KEY, settings=few, limits=ApiLimits(trusted_proxies=("127.0.0.0/8",))) as (call, _):
        wrong = call.using("wrong-key-" + "w" * 32)
        bad, good = {"X-Forwarded-For": "198.51.100.1"}, {"X-Forwarded-For": "198.51.100.2"}
        statuses = [(await wrong("GET", "/v1/subscriptions", headers=bad)).status for _ in range(4)]
        assert statuses[-1] == 429
        assert (await call("GET", "/v1/subscriptions", headers=bad)).status == 429
        assert (await call("GET", "/v1/subscriptions", headers=good)).status == 200


async def test_connections_of_the_api_leave_descriptors_to_deliveries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (48, resource.RLIM_INFINITY))
    with capture_logs() as logs:
        async with raw(ApiLimits()):
            pass
    (said,) = [line for line in logs if "deliveries need the file descriptors" in line["event"]]
    assert (said["connections"], said["max_connections"]) == (12, 1000)
    async with raw(ApiLimits()) as api:
        streams = [await api.connect() for _ in range(20)]
        assert (await api.ask(streams[-1])).startswith(b"HTTP/1.1 200 ")
        for stream in streams[:8]:
            assert await closed(stream)


async def test_tenants_leave_room_for_the_next_ones_bodies_and_share_it_whatever_keys_they_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(frame, "_OF_ONE", 1000)
    monkeypatch.setattr(frame, "_OF_TENANTS", 2800)
    async with serving(KEY, events_limit=10_000) as (call, _):
        clients = []
        for tenant in ("acme", "globex", "initech", "hooli", "acme"):
            new = {"name": "a", "scope": "tenant", "tenant": tenant, "capabilities": ["publish"]}
            clients.append(call.using((await call("POST", "/v1/keys", new)).json["secret"]))
        hold = asyncio.Event()
        begun = [asyncio.Event() for _ in range(2)]

        async def stalled(number: int) -> AsyncIterator[bytes]:
            yield b"[" + b" " * 900
            begun[number].set()
            await hold.wait()
            yield b'{"type": "a.b"}]'

        headers = {"Content-Type": "application/json"}
        small, large = ([{"type": "a.b", "data": "x" * size}] for size in (200, 900))

        async def others() -> None:
            for each in begun:
                await each.wait()
            while (refused := await clients[2]("POST", "/v1/events", large)).status == 202:
                await asyncio.sleep(0.001)  # what was sent has not come yet
            problem(refused, 429, "overloaded")
            assert (await clients[3]("POST", "/v1/events", small)).status == 202
            problem(await clients[4]("POST", "/v1/events", small), 429, "overloaded")
            hold.set()

        *uploads, _ = await asyncio.gather(
            *(
                clients[number]("POST", "/v1/events", data=stalled(number), headers=headers)
                for number in range(2)
            ),
            others(),
        )
        assert [upload is not None and upload.status for upload in uploads] == [202, 202]


async def test_a_tenant_s_key_has_a_share_of_the_room_for_bodies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame, "_OF_ONE", 1000)
    monkeypatch.setattr(frame, "_OF_TENANTS", 1500)
    async with serving(KEY, events_limit=10_000) as (call, _):
        keys = []
        for tenant in ("acme", "globex"):
            made = await call(
                "POST",
                "/v1/keys",
                {"name": "a", "scope": "tenant", "tenant": tenant, "capabilities": ["publish"]},
            )
            keys.append(made.json["secret"])
        first, second = map(call.using, keys)
        hold, begun = asyncio.Event(), asyncio.Event()

        async def stalled(size: int) -> AsyncIterator[bytes]:
            yield b"[" + b" " * size
            begun.set()
            await hold.wait()
            yield b'{"type": "a.b"}]'

        headers = {"Content-Type": "application/json"}
        event = [{"type": "a.b", "data": "x" * 200}]

        async def others() -> None:
            await begun.wait()
            while (refused := await first("POST", "/v1/events", event)).status == 202:
                await asyncio.sleep(0.001)
            problem(refused, 429, "overloaded")
            assert (await second("POST", "/v1/events", event)).status == 202
            big = [{"type": "a.b", "data": "x" * 700}]
            problem(await second("POST", "/v1/events", big), 429, "overloaded")
            assert (await call("POST", "/v1/events", big)).status == 202, "an operator has room"
            hold.set()

        upload, _ = await asyncio.gather(
            first("POST", "/v1/events", data=stalled(900), headers=headers), others()
        )
        assert upload.status == 202
        assert (await first("POST", "/v1/events", event)).status == 202
