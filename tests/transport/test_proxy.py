"""Through an egress proxy: tunnels, the absolute form, and whose fault it is when it fails."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import pytest
from pydantic import ValidationError

from dispatcher.core.request.results import Failure, Reason, Response
from dispatcher.core.request.urls import Origin
from dispatcher.settings.groups import NetworkSettings
from dispatcher.transport.proxy import Proxy
from tests.zoo.behaviours import (
    OK,
    accepts_and_closes,
    answers,
    closes_after,
    drips,
    floods,
    never_answers,
    resets_after,
    response,
    says,
)
from tests.zoo.harness import Harness
from tests.zoo.server import Gone, Peer, Script, Zoo, expired, good, over_tls

Make = Callable[..., Harness]
READY = b"HTTP/1.1 200 Connection established\r\n\r\n"


class Tunnel:
    """A proxy that connects every CONNECT to one port, whatever the name; `asked` are the heads it saw."""

    def __init__(self, port: int, ready: bytes = READY, step: int = 65536) -> None:
        self.port = port
        self.ready = ready
        self.step = step
        self.asked: list[bytes] = []

    async def __call__(self, peer: Peer) -> None:
        self.asked.append(await peer.request())
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        await peer.drip(self.ready, 0.001, self.step)

        async def back() -> None:
            while data := await reader.read(65536):
                await peer.send(data)
            await peer.half_close()

        loop = asyncio.get_running_loop()
        backwards = loop.create_task(back())
        try:
            while True:
                writer.write(await peer.read())
        except Gone:
            pass
        finally:
            backwards.cancel()
            with contextlib.suppress(asyncio.CancelledError, Gone, OSError):
                await backwards
            writer.close()


async def through(
    zoo: Zoo, make: Make, script: Callable[[Peer], Awaitable[None]], **network: object
) -> Harness:
    port = await zoo.serve(script)
    return make(network={"proxy": f"http://127.0.0.1:{port}", **network})


async def test_https_goes_through_a_tunnel_with_tls_to_the_endpoint(zoo: Zoo, make: Make) -> None:
    endpoint = await zoo.serve(over_tls(answers(OK), good))
    tunnel = Tunnel(endpoint)
    harness = await through(zoo, make, tunnel, proxy_username="kim", proxy_password="s:e c")
    for _ in range(3):
        assert isinstance(await harness.result(Origin("https", "localhost", 8443)), Response)
    assert tunnel.asked == [
        b"CONNECT localhost:8443 HTTP/1.1\r\nHost: localhost:8443\r\nProxy-Authorization: Basic a2ltOnM6ZSBj\r\n\r\n"
    ]
    assert harness.transport.connections() == {"idle": 1, "busy": 0, "connecting": 0}


async def test_the_endpoints_certificate_is_verified_through_the_tunnel(zoo: Zoo, make: Make) -> None:
    for context, name, why in (
        (expired, "127.0.0.1", Reason.TLS_EXPIRED),
        (good, "a.example", Reason.TLS_HOSTNAME),
    ):
        harness = await through(zoo, make, Tunnel(await zoo.serve(over_tls(answers(OK), context))))
        result = await harness.result(Origin("https", name, 443))
        assert isinstance(result, Failure)
        assert result.reason is why


@pytest.mark.parametrize(
    ("ready", "step"),
    [
        (READY, 1),
        (b"HTTP/1.0 200\r\n\r\n", 65536),
        (b"HTTP/1.1 299 Sure\r\nVia: proxy\r\nX: y\r\n\r\n", 7),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + READY, 65536),
        (b"HTTP/1.1 200 OK\n\n", 1),
    ],
)
async def test_any_2xx_makes_the_tunnel(zoo: Zoo, make: Make, ready: bytes, step: int) -> None:
    endpoint = await zoo.serve(over_tls(answers(OK), good))
    harness = await through(zoo, make, Tunnel(endpoint, ready, step))
    assert isinstance(await harness.result(Origin("https", "localhost", 443)), Response)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (answers(response(b"", status=b"407 Proxy Authentication Required")), "407 Proxy Authentication"),
        (answers(response(b"", status=b"502 Bad Gateway")), "502 Bad Gateway"),
        (answers(response(b"", status=b"403 Forbidden")), "403 Forbidden"),
        (answers(b"HTTP/1.1 302 Found\r\nLocation: /login\r\n\r\n"), "302 Found"),
        (says(b"SSH-2.0-x\r\n\r\n"), "SSH"),
        (says(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 20_000), "no end"),
        (floods(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), "more than 16 interim"),
        (answers(b"HTTP/1.1 100 Continue\r\n\r\n" * 5000), "more than 16 interim"),
        (drips(b"", b"HTTP/1.1 102 Wait\r\n\r\n" * 17, 0, 3), "more than 16 interim"),
        (says((b"HTTP/1.1 102 Wait\r\nX: " + b"x" * 9000 + b"\r\n\r\n") * 2 + b"HTTP"), "no end"),
        (answers(b"\x05\x00\r\n\r\n"), "doesn't answer CONNECT with HTTP"),
        (closes_after(b""), "closed the connection"),
        (closes_after(b"HTTP/1.1 200 OK\r\n"), "closed the connection"),
        (resets_after(b""), "closed the connection"),
    ],
)
async def test_a_refused_tunnel_is_the_proxys_fault(zoo: Zoo, make: Make, script: Script, words: str) -> None:
    harness = await through(zoo, make, script)
    result = await harness.result(Origin("https", "hooks.example", 443))
    assert isinstance(result, Failure)
    assert result.reason is Reason.PROXY_ERROR
    assert words in result.detail
    assert len(harness.transport) == 0


async def test_a_proxy_that_echoes_does_not_bring_our_password_into_the_log(zoo: Zoo, make: Make) -> None:
    async def echo(peer: Peer) -> None:
        await peer.send(await peer.request())
        await peer.hang()

    harness = await through(zoo, make, echo, proxy_username="kim", proxy_password="hunter2")
    for scheme in ("http", "https"):
        result = await harness.result(Origin(scheme, "a.example", 80))
        assert isinstance(result, Failure)
        assert "our own request" in result.detail
        assert "Proxy-" not in result.detail


async def test_what_goes_wrong_behind_the_tunnel_is_the_endpoints_fault(zoo: Zoo, make: Make) -> None:
    for script in (accepts_and_closes, says(b"This is not TLS.")):
        harness = await through(zoo, make, Tunnel(await zoo.serve(script)))
        result = await harness.result(Origin("https", "localhost", 443))
        assert isinstance(result, Failure)
        assert result.reason is Reason.TLS_FAILED
    harness = await through(zoo, make, Tunnel(await zoo.serve(over_tls(closes_after(b""), good))))
    result = await harness.result(Origin("https", "localhost", 443))
    assert isinstance(result, Failure)
    assert result.reason is Reason.CLOSED


async def test_a_tunnel_that_takes_too_long_ends_with_the_connect_timeout(zoo: Zoo, make: Make) -> None:
    for script in (never_answers, drips(b"", READY, 0.05)):
        port = await zoo.serve(script)
        harness = make(network={"proxy": f"http://127.0.0.1:{port}"}, delivery={"connect_timeout": "100ms"})
        result = await harness.result(Origin("https", "localhost", 443))
        assert isinstance(result, Failure)
        assert result.reason is Reason.CONNECT_TIMEOUT
        assert "proxy" in result.detail


async def test_http_goes_to_the_proxy_with_the_whole_url(zoo: Zoo, make: Make) -> None:
    seen: list[bytes] = []

    async def script(peer: Peer) -> None:
        while True:
            seen.append(await peer.request())
            await peer.send(OK)

    harness = await through(zoo, make, script, proxy_username="kim", proxy_password="pw")
    for origin in (Origin("http", "a.example", 8080), Origin("http", "2001:4860::8", 80)):
        for _ in range(2):
            assert isinstance(await harness.result(origin), Response)
    lines = [request.split(b"\r\n") for request in seen]
    assert [line[0] for line in lines] == [
        b"POST http://a.example:8080/ HTTP/1.1",
        b"POST http://a.example:8080/ HTTP/1.1",
        b"POST http://[2001:4860::8]/ HTTP/1.1",
        b"POST http://[2001:4860::8]/ HTTP/1.1",
    ]
    for line in lines:
        assert line.count(b"Proxy-Authorization: Basic a2ltOnB3") == 1
        assert line[-1] == b"x" * 20
    assert harness.transport.connections_opened == 2


async def test_over_http_only_407_is_known_to_be_the_proxys(zoo: Zoo, make: Make) -> None:
    harness = await through(zoo, make, answers(response(b"", status=b"407 Who are you")))
    for _ in range(2):
        result = await harness.result(Origin("http", "a.example", 80))
        assert isinstance(result, Failure)
        assert result.reason is Reason.PROXY_ERROR
    harness = await through(zoo, make, answers(response(b"", status=b"502 Bad Gateway")))
    assert await harness.result(Origin("http", "a.example", 80)) == Response(502)


async def test_a_proxy_that_cannot_be_reached_is_a_proxy_error(zoo: Zoo, make: Make) -> None:
    async with Zoo() as gone:
        port = await gone.serve(answers(OK))
    for proxy in (f"http://127.0.0.1:{port}", "http://proxy.invalid:3128"):
        harness = make(network={"proxy": proxy, "dns_timeout": "100ms", "dns_servers": ["127.0.0.1:9"]})
        for scheme in ("http", "https"):
            result = await harness.result(Origin(scheme, "a.example", 80), within=3.0)
            assert isinstance(result, Failure)
            assert result.reason is Reason.PROXY_ERROR, result
            assert "proxy" in result.detail


async def test_the_guard_still_checks_literal_targets_and_not_the_proxy(zoo: Zoo, make: Make) -> None:
    port = await zoo.serve(answers(OK))
    harness = make(allow=(), network={"proxy": f"http://127.0.0.1:{port}"})
    for host in ("10.0.0.1", "127.0.0.1", "169.254.169.254", "::1"):
        for scheme in ("http", "https"):
            result = await harness.result(Origin(scheme, host, 80))
            assert isinstance(result, Failure)
            assert result.reason is Reason.BLOCKED
    assert harness.transport.connections_opened == 0
    assert isinstance(await harness.result(Origin("http", "a.example", 80)), Response)


def test_the_settings_keep_credentials_out_of_the_address_and_of_messages() -> None:
    for bad in (
        "http://kim:hunter2@proxy:3128",
        "https://proxy:3128",
        "proxy:3128",
        "http://proxy",
        "http://p:0",
    ):
        with pytest.raises(ValidationError) as caught:
            NetworkSettings.model_validate({"proxy": bad})
        assert "hunter2" not in str([error["msg"] for error in caught.value.errors()])
    assert Proxy.of("http://[::1]:3128") == Proxy("::1", 3128, b"")
    assert str(Proxy.of("http://[::1]:3128")) == "[::1]:3128"
    assert (
        Proxy.of("http://proxy:8080", "u\xfc", "p").authorization
        == b"Proxy-Authorization: Basic dcO8OnA=\r\n"
    )
