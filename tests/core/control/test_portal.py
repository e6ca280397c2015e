"""The form of portal sessions, their tokens, and images."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dispatcher.core.control.portal import (
    PortalImage,
    PortalSession,
    is_token_of,
    make_token,
    media_type,
    read_token,
)
from dispatcher.core.control.signer import Signer

SIGNER = Signer([b"s" * 32])
SESSION = PortalSession(
    "0123456789abcdef", "acme", frozenset({"read"}), 1, 2, "settings", "ada", "seed", {"next": "/"}
)


def test_a_session_is_read_as_it_was_written() -> None:
    assert PortalSession.from_document(SESSION.id, SESSION.to_document()) == SESSION
    for broken in ({}, {**SESSION.to_document(), "page": 7}, {**SESSION.to_document(), "expires_ms": "x"}):
        with pytest.raises((KeyError, TypeError, ValueError)):
            PortalSession.from_document(SESSION.id, broken)


def test_a_capability_that_this_version_does_not_know_is_left_out() -> None:
    document = {**SESSION.to_document(), "capabilities": ["read", "fly"]}
    assert PortalSession.from_document(SESSION.id, document).capabilities == {"read"}


def test_a_token_is_of_its_session_and_of_no_other() -> None:
    token = read_token(make_token(SESSION, 1_760_000_900, SIGNER))
    assert token is not None
    assert (token.session, token.expires_ms) == (SESSION.id, 1_760_000_900_000)
    assert is_token_of(token, SESSION, SIGNER)
    assert not is_token_of(token, SESSION, Signer([b"t" * 32]))
    assert not is_token_of(token, replace(SESSION, seed="other"), SIGNER)
    # Its end can't be moved.
    assert not is_token_of(token._replace(expires="1760009999"), SESSION, SIGNER)


@pytest.mark.parametrize("text", ["", "dps_", "dk_x", "dps_" + "0" * 16 + "_1_" + "A" * 43, "dps_\u0660" * 9])
def test_what_has_not_the_form_of_a_token_is_none(text: str) -> None:
    assert read_token(text) is None


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"\x89PNG\r\n\x1a\nrest", "image/png"),
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"GIF89a", "image/gif"),
        (b"RIFF\x00\x00\x00\x00WEBPVP8 ", "image/webp"),
        (b"\x00\x00\x01\x00\x01", "image/x-icon"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "image/svg+xml"),
        (b'\xef\xbb\xbf<?xml version="1.0"?>\n<!-- a -->\n<svg>', "image/svg+xml"),
        (b"<html><svg>", None),
        (b"<script>alert(1)</script>", None),
        (b"", None),
        (b"RIFF\x00\x00\x00\x00WAVE", None),
        (b"<svgx>", None),
    ],
)
def test_what_an_image_is_follows_from_its_bytes_alone(data: bytes, kind: str | None) -> None:
    assert media_type(data) == kind


def test_an_image_is_read_as_it_was_written_and_nothing_else_is() -> None:
    image = PortalImage("0" * 32, "image/gif", b"GIF89a", 1)
    assert PortalImage.from_document(image.id, image.to_document()) == image
    with pytest.raises(ValueError, match="kind"):
        PortalImage.from_document(image.id, {**image.to_document(), "media_type": "text/html"})
