from __future__ import annotations

import asyncio
import base64
import time
from datetime import UTC, datetime
from typing import Self

import aiohttp
import pytest
from multidict import CIMultiDict
from standardwebhooks import Webhook

from dispatcher.commands.receiver import (
    Arrival,
    Behaviour,
    DeadPort,
    InvalidSecretError,
    Receiver,
    ReceiverAnswer,
    SignatureVerdict,
    healthy,
    secret_key,
    verify,
)
from dispatcher.runtime.tasks import Tasks

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
OTHER = "whsec_" + base64.b64encode(bytes(32)).decode()
NOW = 1_700_000_000.0


def signed(body: bytes, secret: str = SECRET, at: float = NOW, event_id: str = "evt_1") -> CIMultiDict[str]:
    """Headers as the public library of the specification signs them."""
    when = datetime.fromtimestamp(at, tz=UTC)
    signature = Webhook(secret).sign(event_id, when, body.decode())
    return CIMultiDict(
        {"webhook-id": event_id, "webhook-timestamp": str(int(at)), "webhook-signature": signature}
    )


def test_what_the_public_library_signs_is_valid() -> None:
    body = '{"n": "ü"}'.encode()
    assert verify(secret_key(SECRET), signed(body), body, NOW) is SignatureVerdict.VALID


def test_header_names_ignore_case() -> None:
    headers = CIMultiDict((name.title(), value) for name, value in signed(b"{}").items())
    assert verify(secret_key(SECRET), headers, b"{}", NOW) is SignatureVerdict.VALID


def test_one_fitting_signature_of_several_is_enough() -> None:
    headers = signed(b"{}")
    headers["webhook-signature"] = (
        f"{signed(b'{}', OTHER)['webhook-signature']} {headers['webhook-signature']}"
    )
    assert verify(secret_key(SECRET), headers, b"{}", NOW) is SignatureVerdict.VALID


@pytest.mark.parametrize(
    "signature", ["v1,", "v1", " ", "v1a,AAAA", "v2,g0hM9SsE", "v1,\udcff\udcfe", "v1," + "A" * 10_000]
)
def test_a_signature_that_does_not_fit_is_wrong_and_never_an_exception(signature: str) -> None:
    headers = signed(b"{}")
    headers["webhook-signature"] = signature
    assert verify(secret_key(SECRET), headers, b"{}", NOW) is SignatureVerdict.WRONG


@pytest.mark.parametrize("change", ["body", "id", "timestamp", "secret"])
def test_everything_that_is_signed_is_checked(change: str) -> None:
    headers, body, key = signed(b"{}"), b"{}", secret_key(SECRET)
    match change:
        case "body":
            body = b"{ }"
        case "id":
            headers["webhook-id"] = "evt_2"
        case "timestamp":
            headers["webhook-timestamp"] = str(int(NOW) + 1)
        case "secret":
            key = secret_key(OTHER)
    assert verify(key, headers, body, NOW) is SignatureVerdict.WRONG


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_a_header_that_is_not_there_is_named_missing(name: str) -> None:
    headers = signed(b"{}")
    del headers[name]
    assert verify(secret_key(SECRET), headers, b"{}", NOW) is SignatureVerdict.MISSING


@pytest.mark.parametrize(
    ("off", "verdict"), [(299, "valid"), (-299, "valid"), (302, "stale"), (-302, "stale")]
)
def test_a_timestamp_may_be_five_minutes_off_either_way(off: int, verdict: str) -> None:
    assert verify(secret_key(SECRET), signed(b"{}"), b"{}", NOW + off) == verdict


@pytest.mark.parametrize("secret", ["whsec_!!", "whsec_", "", "whsec_AAAA", "whsec_" + "A" * 100])
def test_a_secret_that_is_none_is_refused(secret: str) -> None:
    with pytest.raises(InvalidSecretError):
        secret_key(secret)


class Endpoint:
    """A receiver on a free port, and what it got."""

    def __init__(self, behaviour: Behaviour = healthy) -> None:
        self.arrivals: list[Arrival] = []
        self.receiver = Receiver(secret_key(SECRET), self.arrivals.append, behaviour)

    async def __aenter__(self) -> Self:
        self.url = f"http://127.0.0.1:{await self.receiver.start('127.0.0.1')}/hooks/x?y=1"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.receiver.stop()


async def test_a_request_is_judged_reported_and_answered() -> None:
    async with Endpoint() as endpoint, aiohttp.ClientSession() as client:
        headers = signed(b"{}", at=time.time())
        assert (await client.post(endpoint.url, data=b"{}", headers=headers)).status == 200
        assert (await client.post(endpoint.url, data=b"{}!", headers=headers)).status == 200
    assert [(each.id, each.number, each.verdict) for each in endpoint.arrivals] == [
        ("evt_1", 1, SignatureVerdict.VALID),
        ("evt_1", 2, SignatureVerdict.WRONG),
    ]
    assert endpoint.arrivals[1].body == b"{}!"


async def test_a_request_tells_its_method_target_sender_and_place() -> None:
    async with Endpoint() as endpoint, aiohttp.ClientSession() as client:
        await client.post(endpoint.url)
        await client.put(endpoint.url)
    assert [(each.serial, each.method, each.target, each.remote) for each in endpoint.arrivals] == [
        (1, "POST", "/hooks/x?y=1", "127.0.0.1"),
        (2, "PUT", "/hooks/x?y=1", "127.0.0.1"),
    ]


async def test_a_sender_that_leaves_before_its_answer_is_reported() -> None:
    left: asyncio.Future[Arrival] = asyncio.get_running_loop().create_future()
    receiver = Receiver(
        secret_key(SECRET),
        lambda _arrival: None,
        lambda _id, _number: ReceiverAnswer(200, 3600),
        left.set_result,
    )
    port = await receiver.start("127.0.0.1")
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()
        assert (await asyncio.wait_for(left, 30)).target == "/a"
        del reader
    finally:
        await receiver.stop()


async def test_the_behaviour_sees_which_request_with_an_id_this_is() -> None:
    async with (
        Endpoint(
            lambda event_id, number: ReceiverAnswer(503 if event_id == "a" and number < 3 else 204)
        ) as endpoint,
        aiohttp.ClientSession() as client,
    ):
        statuses = [
            (await client.post(endpoint.url, headers={"webhook-id": event_id})).status for event_id in "aabaa"
        ]
    assert statuses == [503, 503, 204, 204, 204]


async def test_a_reset_is_a_reset_and_reported_all_the_same() -> None:
    async with (
        Endpoint(lambda _id, _number: ReceiverAnswer(None)) as endpoint,
        aiohttp.ClientSession() as client,
    ):
        with pytest.raises(aiohttp.ClientConnectionError):
            await client.post(endpoint.url)
    assert len(endpoint.arrivals) == 1


async def test_stopping_does_not_wait_for_answers_under_way() -> None:
    arrived, tasks = asyncio.Event(), Tasks()
    receiver = Receiver(
        secret_key(SECRET), lambda _arrival: arrived.set(), lambda _id, _n: ReceiverAnswer(delay=3600)
    )
    port = await receiver.start("127.0.0.1")
    async with aiohttp.ClientSession() as client:
        posting = tasks.start(_post(client, port), "post")
        await arrived.wait()
        async with asyncio.timeout(30):
            await receiver.stop()
        await posting


async def _post(client: aiohttp.ClientSession, port: int) -> None:
    with pytest.raises(aiohttp.ClientConnectionError):
        await client.post(f"http://127.0.0.1:{port}/")


async def test_a_dead_port_refuses_connections_and_stays_taken() -> None:
    dead = DeadPort()
    try:
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", dead.port)
        with pytest.raises(OSError, match="in use"):
            await asyncio.start_server(lambda _r, _w: None, "127.0.0.1", dead.port)
    finally:
        dead.close()
