"""Flaws: the mistakes in a document that somebody wrote, each with its place, all of them told at once.

Subscriptions, event types, events and requests of the API are checked so, by the core and by the control plane. The API
answers with the same list.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Flaw(NamedTuple):
    """One mistake: where it stands in the document, and what is wrong."""

    path: tuple[str | int, ...]
    message: str

    @property
    def field(self) -> str:
        """`event_types[0]`, `retry.jitter`; empty for the document as a whole."""
        return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in self.path).lstrip(".")

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.path else self.message


class FlawedError(ValueError):
    """The document can't be used; `flaws` are all that is wrong with it."""

    def __init__(self, flaws: Sequence[Flaw]) -> None:
        super().__init__("; ".join(map(str, flaws)))
        self.flaws = tuple(flaws)
