"""A subscription by itself."""

from __future__ import annotations

import pytest

from tests.core.subscription.test_index import subscription


def test_the_request_head_is_made_at_first_use_and_kept() -> None:
    each = subscription(target="/in?x=1")
    made = each.request
    assert made.head.startswith(b"POST /in?x=1 HTTP/1.1\r\nHost: hooks.example.com\r\n")
    assert b"X-Env: prod\r\n" in made.tail
    assert each.request is made
    with pytest.raises(AttributeError):
        each.no_such_attribute  # noqa: B018


def test_a_subscription_shows_its_url_and_hides_its_secrets() -> None:
    each = subscription(target="/in")
    assert each.url == "https://hooks.example.com/in"
    assert "whsec_" not in repr(each)
