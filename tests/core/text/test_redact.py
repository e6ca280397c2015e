"""What people typed is shown without their passwords."""

from __future__ import annotations

import pytest

from dispatcher.core.text.redact import name_of, without_credentials


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://kim:hunter2@proxy:3128", "http://***@proxy:3128"),
        ("http://kim:hun@ter2/x@proxy:3128", "http://***@proxy:3128"),
        ("kim:hunter2@proxy", "***@proxy"),
        ("https://proxy:3128/x", "https://proxy:3128/x"),
        ("", ""),
    ],
)
def test_credentials_before_an_at_sign_are_left_out(text: str, shown: str) -> None:
    assert without_credentials(text) == shown


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Authorization: Bearer hunter2", "Authorization"),
        ("network.proxy_password hunter2", "network.proxy_password"),
        ("hunter2", "what is given"),
        ("", "what is given"),
    ],
)
def test_of_a_failed_assignment_only_the_name_is_shown(text: str, name: str) -> None:
    assert name_of(text) == name
