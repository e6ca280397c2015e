"""What is shown of secrets: enough to tell two apart, nothing to sign with."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from dispatcher.control.masking import mask_document, mask_header, mask_secret, unmask_headers

SECRETS = st.text("abcdefghijklmnopqrstuvwxyzABC0123456789+/=", min_size=1, max_size=80)


@given(st.sampled_from(["", "whsec_", "whsk_"]), SECRETS)
def test_of_any_secret_its_kind_and_at_most_four_characters_are_shown(prefix: str, secret: str) -> None:
    masked = mask_secret(prefix + secret)
    assert masked.startswith(f"{prefix}...")
    end = masked.removeprefix(f"{prefix}...")
    assert len(end) <= 4
    assert secret.endswith(end)
    if len(secret) < 20:
        assert not end, "four characters of a short one are too large a part"


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("X-Env", "production", "production"),
        ("Authorization", "Bearer abcdefghijklmnopqrstuvwxyz", "Bearer ...wxyz"),
        ("authorization", "Basic dXNlcjpwYXNz", "Basic ..."),
        ("X-Api-Key", "abcdefghijklmnopqrstuvwxyz", "...wxyz"),
        ("X-Auth-Token", "short", "..."),
        ("Cookie", "session=1", "..."),
        ("X-Secret", "hush", "..."),
        ("X-Password", "hush", "..."),
    ],
)
def test_a_header_whose_name_lets_somebody_in_is_masked(name: str, value: str, shown: str) -> None:
    assert mask_header(name, value) == shown


def test_a_document_is_masked_in_a_copy() -> None:
    document = {"url": "https://a.example/", "headers": {"Authorization": "Bearer abcdefgh", "X-Env": "prod"}}
    assert mask_document(document)["headers"] == {"Authorization": "Bearer ...", "X-Env": "prod"}
    assert document["headers"] == {"Authorization": "Bearer abcdefgh", "X-Env": "prod"}
    assert mask_document({"url": "https://a.example/"}) == {"url": "https://a.example/"}


def test_a_mask_that_comes_back_keeps_the_value_and_anything_else_replaces_it() -> None:
    known = {"Authorization": "Bearer abcdefghijklmnopqrstuvwxyz", "X-Env": "prod"}
    shown = {name: mask_header(name, value) for name, value in known.items()}
    assert unmask_headers(shown, known) == known
    assert unmask_headers({"Authorization": "Bearer ...abcd"}, known) == {"Authorization": "Bearer ...abcd"}
    assert unmask_headers({"X-Other": "Bearer ...wxyz", "X-Env": None}, known) == {
        "X-Other": "Bearer ...wxyz",
        "X-Env": None,
    }
