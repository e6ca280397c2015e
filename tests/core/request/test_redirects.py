from __future__ import annotations

import pytest

from dispatcher.core.request.netguard import Guard
from dispatcher.core.request.redirects import MAX_HOPS, Hop, follow
from dispatcher.core.request.results import Failure, Reason, Response

GUARD = Guard()
BASE = GUARD.check_url("https://a.example/hooks/1?x=1")
REQUEST = b"POST /hooks/1?x=1 HTTP/1.1\r\nHost: a.example\r\n\r\nbody"


def redirect(location: str | None, status: int = 307) -> Response:
    return Response(status, location=location)


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("/other", "/other"),
        ("2", "/hooks/2"),
        ("https://a.example/", "/"),
        ("//a.example/there", "/there"),
        ("?y=2", "/hooks/1?y=2"),
        ("/a#fragment", "/a"),
    ],
)
def test_a_redirect_on_the_same_origin_is_followed_with_the_same_head_and_body(
    location: str, target: str
) -> None:
    hop = follow(GUARD, BASE, REQUEST, redirect(location), 0)
    assert isinstance(hop, Hop)
    assert hop.target == GUARD.check_url(f"https://a.example{target}")
    assert hop.request == REQUEST.replace(b"/hooks/1?x=1", target.encode())


@pytest.mark.parametrize(
    "location", ["https://b.example/", "http://a.example/", "https://a.example:8443/", "https://10.0.0.1/"]
)
def test_another_origin_ends_the_attempt(location: str) -> None:
    ended = follow(GUARD, BASE, REQUEST, redirect(location, 308), 0)
    assert isinstance(ended, Failure)
    assert ended.reason is Reason.BLOCKED
    assert ended.detail.startswith("status 308, not followed: ")


@pytest.mark.parametrize("location", [None, ""])
def test_a_redirect_without_a_location_is_the_result(location: str | None) -> None:
    response = redirect(location)
    assert follow(GUARD, BASE, REQUEST, response, 0) is response


def test_an_attempt_follows_no_more_redirects_than_the_limit() -> None:
    response = redirect("/again")
    assert isinstance(follow(GUARD, BASE, REQUEST, response, MAX_HOPS - 1), Hop)
    assert follow(GUARD, BASE, REQUEST, response, MAX_HOPS) is response
