"""What a span is that is over, and where it goes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

Value = str | int | bool


class FinishedSpan(NamedTuple):
    """One span that is over. Times in nanoseconds since 1970."""

    name: str
    trace_id: int
    span_id: int
    parent_id: int | None
    remote: bool
    """Whether the span above it is another process's."""
    state: str | None
    client: bool
    """A request of ours; else the work on a message."""
    began_ns: int
    ended_ns: int
    attributes: dict[str, Value]
    events: list[tuple[str, int, dict[str, Value]]]
    error: str | None
    """Why it failed, in words; None: it did not."""


class SpanSink(Protocol):
    """Where spans go."""

    def put(self, span: FinishedSpan) -> None:
        """Take one, or drop it. Never waits."""

    def counts(self) -> Mapping[str, int]:
        """How many were exported, dropped or failed."""

    @property
    def waiting(self) -> int:
        """How many are taken and not sent yet."""

    def close(self) -> None:
        """Send what is left, in the calling thread, however long that takes."""
