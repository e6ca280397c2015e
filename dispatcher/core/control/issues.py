"""Issues: what keeps deliveries of one subscription from arriving, by its cause; and what people said about that.

An issue is not stored: it is there while the history has undelivered deliveries of it. What is stored is the mark that somebody put on it.

Rules:

1. An issue is *resolved* when its subscription acknowledged something after the last failure of this cause, and nothing is set aside for it.
2. *Ignored* holds until its time. *Acknowledged* holds until the next success: what fails after that is news.
3. A mark ends with the history's rows that it was about.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Literal

MarkKind = Literal["acknowledged", "ignored"]

_MAX_CAUSE: Final = 64  # characters, as the history keeps them


class IssueState(StrEnum):
    """What is to be done about an issue, the most urgent first."""

    OPEN = "open"
    ACKNOWLEDGED = "acknowledged"
    IGNORED = "ignored"
    RESOLVED = "resolved"


@dataclass(frozen=True, slots=True)
class IssueMark:
    """What somebody said about an issue. `tenant` is that of its subscription; `scope` that of the caller."""

    kind: MarkKind
    at_ms: int
    until_ms: int | None
    tenant: str | None
    by: str
    scope: str

    def to_document(self) -> dict[str, Any]:
        """As it is kept."""
        return {
            "kind": self.kind,
            "at_ms": self.at_ms,
            "until_ms": self.until_ms,
            "tenant": self.tenant,
            "by": self.by,
            "scope": self.scope,
        }

    @classmethod
    def from_document(cls, _: str, document: dict[str, Any]) -> IssueMark:
        """Read what `to_document` made. Raises KeyError, TypeError or ValueError for anything else."""
        until, tenant = document["until_ms"], document["tenant"]
        kind: MarkKind = "ignored" if document["kind"] == "ignored" else "acknowledged"
        return cls(
            kind,
            int(document["at_ms"]),
            None if until is None else int(until),
            None if tenant is None else str(tenant),
            str(document["by"]),
            str(document["scope"]),
        )

    def ended(self, now_ms: int, kept_ms: int) -> bool:
        """Whether its time is over, or that of the history's rows, which are kept so long (rule 3)."""
        if self.until_ms is not None:
            return self.until_ms <= now_ms
        return self.at_ms + kept_ms <= now_ms


def issue_id(subscription_id: str, cause: str) -> str:
    """The id of an issue."""
    return f"{subscription_id}:{cause}"


def read_issue_id(text: str) -> tuple[str, str] | None:
    """Subscription and cause of an issue's id; None for what is none."""
    subscription_id, colon, cause = text.partition(":")
    return (subscription_id, cause) if colon and subscription_id and 0 < len(cause) <= _MAX_CAUSE else None


def state_of(
    last_ms: int, pending: int, success_ms: int | None, mark: IssueMark | None, now_ms: int
) -> IssueState:
    """The state of an issue whose last failure was at `last_ms`, with so many deliveries set aside. `success_ms`: the subscription's last success."""
    success = -1 if success_ms is None else success_ms
    if not pending and success > last_ms:
        return IssueState.RESOLVED
    if mark is None:
        return IssueState.OPEN
    if mark.until_ms is not None:
        return IssueState.IGNORED if now_ms < mark.until_ms else IssueState.OPEN
    return IssueState.ACKNOWLEDGED if success <= mark.at_ms else IssueState.OPEN
