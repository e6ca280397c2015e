"""Portal sessions and the portal's images: their form, and the records that are kept of them.

A session lets a tenant's own people in until it ends or is revoked. Its tokens are short-lived and can be renewed until then. A
token is `dps_<session>_<when it ends, Unix seconds>_<signature>`, signed over the session's own random `seed`: the record alone,
which whoever reads the topic can see, makes no token.
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from dispatcher.core.control.keys import CAPABILITIES, Capability
from dispatcher.core.control.signer import TEXT_LENGTH, Signer

PREFIX: Final = "dps_"
MAX_IMAGE: Final = 64 << 10
"""Bytes of an image."""

_TOKEN: Final = re.compile(
    rf"dps_([0-9a-f]{{16}})_([0-9]{{9,11}})_([A-Za-z0-9_-]{{{TEXT_LENGTH}}})", re.ASCII
)
_PURPOSE: Final = "portal"


@dataclass(frozen=True, slots=True)
class PortalSession:
    """The record of a portal session. `page` is how the portal looks: checked by the API, and only shown."""

    id: str
    tenant: str
    capabilities: frozenset[Capability]
    created_ms: int
    expires_ms: int
    created_by: str
    user: str | None
    seed: str
    page: dict[str, Any]

    def to_document(self) -> dict[str, Any]:
        """As it is kept."""
        return {
            "tenant": self.tenant,
            "capabilities": [name for name in CAPABILITIES if name in self.capabilities],
            "created_ms": self.created_ms,
            "expires_ms": self.expires_ms,
            "created_by": self.created_by,
            "user": self.user,
            "seed": self.seed,
            "page": self.page,
        }

    @classmethod
    def from_document(cls, id: str, document: dict[str, Any]) -> PortalSession:  # noqa: A002 - the field's name
        """Read what `to_document` made. Raises KeyError, TypeError or ValueError for anything else."""
        given = document["capabilities"]
        user = document.get("user")
        return cls(
            id,
            str(document["tenant"]),
            frozenset(name for name in CAPABILITIES if name in given),
            int(document["created_ms"]),
            int(document["expires_ms"]),
            str(document["created_by"]),
            None if user is None else str(user),
            str(document["seed"]),
            dict(document["page"]),
        )


class PortalToken(NamedTuple):
    """A token as it came; nothing is verified yet."""

    session: str
    expires: str
    signature: str

    @property
    def expires_ms(self) -> int:
        """Unix milliseconds."""
        return int(self.expires) * 1000


def make_token(session: PortalSession, expires: int, signer: Signer) -> str:
    """A token of the session that ends at `expires` (Unix seconds)."""
    signature = signer.sign(_PURPOSE, session.id, str(expires), session.seed)
    return f"{PREFIX}{session.id}_{expires}_{signature}"


def read_token(text: str) -> PortalToken | None:
    """The parts of a token; None if it has not the form of one."""
    match = _TOKEN.fullmatch(text)
    return None if match is None else PortalToken(*match.groups())


def is_token_of(token: PortalToken, session: PortalSession, signer: Signer) -> bool:
    """Whether this installation has made the token for this session."""
    return signer.verifies(token.signature, _PURPOSE, token.session, token.expires, session.seed)


@dataclass(frozen=True, slots=True)
class PortalImage:
    """A logo or a favicon. Its id is the beginning of its SHA-256: an address has one content for ever."""

    id: str
    media_type: str
    data: bytes
    created_ms: int

    def to_document(self) -> dict[str, Any]:
        """As it is kept."""
        return {
            "media_type": self.media_type,
            "data": b64encode(self.data).decode(),
            "created_ms": self.created_ms,
        }

    @classmethod
    def from_document(cls, id: str, document: dict[str, Any]) -> PortalImage:  # noqa: A002 - the field's name
        """Read what `to_document` made. Raises KeyError, TypeError or ValueError for anything else."""
        data = b64decode(document["data"], validate=True)
        if media_type(data) != document["media_type"]:
            raise ValueError("not the kind of image that it is said to be")
        return cls(id, str(document["media_type"]), data, int(document["created_ms"]))


_MAGIC: Final = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\x00\x00\x01\x00", "image/x-icon"),
    (b"GIF89a", "image/gif"),
)
_SVG: Final = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]{0,200}\?>)?\s*(?:<!--.{0,2000}?-->\s*)*<svg[\s>]", re.DOTALL
)


def media_type(data: bytes) -> str | None:
    """What kind of image the bytes are, by the bytes alone; None for anything that isn't served."""
    for magic, kind in _MAGIC:
        if data.startswith(magic):
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return "image/svg+xml" if _SVG.match(data) else None
