"""The handshake and the challenge, without the I/O."""

from __future__ import annotations

import json

import pytest

from dispatcher.core.request.handshake import (
    Allowed,
    Refused,
    Unknown,
    challenge_request,
    handshake_request,
    judge_challenge,
    judge_handshake,
)
from dispatcher.core.request.results import Failure, HandshakeResponse, Reason, Response
from tests.fakes import subscription

ORIGIN = "dispatcher.example"


def answer(status: int = 200, origin: str | None = ORIGIN, rate: str | None = None) -> HandshakeResponse:
    return HandshakeResponse(status, allowed_origin=origin, allowed_rate=rate)


def test_the_request_asks_the_subscriptions_own_url_with_its_own_headers() -> None:
    parts = subscription(headers=(("X-Env", "prod"),)).request
    head = handshake_request(parts, ORIGIN, 120).decode()
    lines = head.split("\r\n")
    assert lines[0] == "OPTIONS /hook HTTP/1.1"
    assert {"Host: endpoint.test", f"WebHook-Request-Origin: {ORIGIN}", "WebHook-Request-Rate: 120"} <= set(
        lines
    )
    assert {"Content-Length: 0", "X-Env: prod"} <= set(lines)
    assert head.endswith("\r\n\r\n")
    assert "WebHook-Request-Rate" not in handshake_request(parts, ORIGIN).decode()


@pytest.mark.parametrize("allowed", [ORIGIN, "*", ORIGIN.upper(), f"other.example, {ORIGIN}"])
def test_an_endpoint_that_names_the_origin_agrees(allowed: str) -> None:
    assert judge_handshake(answer(origin=allowed), ORIGIN) == Allowed()


@pytest.mark.parametrize(
    ("text", "rate"), [("120", 120), ("*", None), ("0", None), ("-1", None), ("9" * 30, None), ("1.5", None)]
)
def test_the_rate_is_taken_where_it_is_a_number(text: str, rate: int | None) -> None:
    assert judge_handshake(answer(rate=text), ORIGIN) == Allowed(rate)


def test_one_that_allows_another_origin_has_said_no() -> None:
    verdict = judge_handshake(answer(origin="other.example"), ORIGIN)
    assert isinstance(verdict, Refused)
    assert "other.example" in verdict.detail


@pytest.mark.parametrize(
    "result", [answer(405), answer(origin=None), answer(500, "*"), Failure(Reason.TIMEOUT), Response(204)]
)
def test_one_that_knows_nothing_of_it_is_asked_the_other_way(result: Response | Failure) -> None:
    assert isinstance(judge_handshake(result, ORIGIN), Unknown)


def test_the_challenge_is_signed_and_whole_even_where_payloads_are_thin() -> None:
    request = challenge_request(subscription(thin=True).request, "evt_1", "c0ffee", 1_000_000)
    head, _, body = request.partition(b"\r\n\r\n")
    assert json.loads(body)["data"] == {"challenge": "c0ffee"}
    assert b"webhook-signature: v1," in head


@pytest.mark.parametrize("body", [b'{"challenge": "c0ffee"}', b"c0ffee", b' "c0ffee"\n'])
def test_an_echo_passes(body: bytes) -> None:
    assert judge_challenge(Response(200, None, None, body), "c0ffee") == Allowed()


@pytest.mark.parametrize(
    "result",
    [
        Response(200, None, None, b""),
        Response(200, None, None, b'{"challenge": "other"}'),
        Response(200, None, None, b'{"challenge": 5}'),
        Response(200, None, None, b"{"),
        Response(400, None, None, b"c0ffee"),
        Failure(Reason.BLOCKED),
    ],
)
def test_anything_else_does_not(result: Response | Failure) -> None:
    assert isinstance(judge_challenge(result, "c0ffee"), Refused)


def test_a_server_that_returns_whatever_it_was_sent_does_not_pass() -> None:
    request = challenge_request(subscription().request, "evt_1", "c0ffee", 1_000_000)
    assert isinstance(
        judge_challenge(Response(200, None, None, request.partition(b"\r\n\r\n")[2]), "c0ffee"), Refused
    )
