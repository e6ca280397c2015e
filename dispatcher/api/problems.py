"""Errors as the API tells them: RFC 9457 problem documents.

`type` is a stable URN that programs may compare. `detail` and `errors` are for people, and `errors` names every
field that is wrong. No document holds values of credentials, tracebacks, or names of our own modules.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, Final, NamedTuple

from dispatcher.core.flaws import Flaw

MEDIA_TYPE: Final = "application/problem+json"
_URN: Final = "urn:webhook-dispatcher:problem:"


class _Meaning(NamedTuple):
    status: int
    title: str


class Kind(Enum):
    """Everything that can be wrong with a request; the name, dashed, ends the `type`."""

    MALFORMED = _Meaning(400, "The request can't be read")
    UNAUTHENTICATED = _Meaning(401, "A valid key is needed")
    FORBIDDEN = _Meaning(403, "This key may not do that")
    FOREIGN_ORIGIN = _Meaning(403, "Refused: the request comes from another site")
    NOT_FOUND = _Meaning(404, "There is nothing here")
    METHOD_NOT_ALLOWED = _Meaning(405, "This address doesn't take that method")
    TOO_SLOW = _Meaning(408, "The request took too long to arrive")
    ALREADY_EXISTS = _Meaning(409, "The id is taken")
    FILE_MANAGED = _Meaning(409, "Managed by the subscriptions file")
    WRONG_STATE = _Meaning(409, "Not possible in its present state")
    HISTORY_OFF = _Meaning(409, "This installation keeps no history")
    GONE = _Meaning(410, "It is there no more")
    VERSION_MISMATCH = _Meaning(412, "Changed by somebody else meanwhile")
    TOO_LARGE = _Meaning(413, "Too large")
    ADDRESS_TOO_LONG = _Meaning(414, "The address is too long")
    UNSUPPORTED_MEDIA_TYPE = _Meaning(415, "This address doesn't take that content type")
    INVALID = _Meaning(422, "Some fields are wrong")
    FIELDS_TOO_LARGE = _Meaning(431, "The header fields are too large")
    TOO_MANY_WRONG_KEYS = _Meaning(429, "Too many wrong keys")
    TOO_MANY_REQUESTS = _Meaning(429, "Too many requests")
    QUOTA_EXCEEDED = _Meaning(429, "Your tenant has or takes as much as it may")
    OVERLOADED = _Meaning(429, "Too much at once")
    INTERNAL = _Meaning(500, "The dispatcher failed")
    UNAVAILABLE = _Meaning(503, "Not possible just now")

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.value.status

    @property
    def title(self) -> str:
        """The same words every time."""
        return self.value.title

    @property
    def uri(self) -> str:
        """The `type` of the problem document."""
        return _URN + self.name.lower().replace("_", "-")


class Problem(Exception):
    """A request that is answered with a problem document."""

    def __init__(
        self,
        kind: Kind,
        detail: str,
        *,
        errors: Sequence[Flaw] = (),
        headers: Mapping[str, str] | None = None,
        quota: str | None = None,
    ) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.errors = tuple(errors)
        self.headers = dict(headers or {})
        self.quota = quota

    def document(self, request_id: str) -> dict[str, Any]:
        """The problem document."""
        document: dict[str, Any] = {
            "type": self.kind.uri,
            "title": self.kind.title,
            "status": self.kind.status,
            "detail": _sayable(self.detail),
            "request_id": request_id,
        }
        if self.errors:
            document["errors"] = [
                {"field": _sayable(flaw.field), "message": _sayable(flaw.message)} for flaw in self.errors
            ]
        if self.quota is not None:
            document["quota"] = self.quota
        return document


def _sayable(text: str) -> str:
    """With an escape for each surrogate that is no half of a pair: names in JSON may have some, and no UTF-8 has."""
    return text.encode(errors="backslashreplace").decode()


def retry_after(seconds: float) -> dict[str, str]:
    """The header that says when to come again."""
    return {"Retry-After": str(max(1, math.ceil(seconds)))}


def invalid(flaws: Sequence[Flaw]) -> Problem:
    """The problem of fields that are wrong."""
    return Problem(Kind.INVALID, "; ".join(map(str, flaws[:3])) + _more(len(flaws) - 3), errors=flaws)


def _more(count: int) -> str:
    return f"; and {count} more" if count > 0 else ""
