"""What the deliveries of a replay are to do, for whoever has them in hand."""

from __future__ import annotations

from enum import Enum
from typing import Protocol


class ReplayStanding(Enum):
    """What a replay's deliveries are to do."""

    GO = "go"
    WAIT = "wait"  # the replay is paused
    OVER = "over"  # the replay is cancelled
    UNKNOWN = "unknown"  # nobody has read of it (yet)


class ReplayStandings(Protocol):
    """Who knows the replays."""

    def standing(self, replay: str) -> ReplayStanding:
        """What the deliveries of this replay are to do."""


class NoReplays:
    """Knows none."""

    def standing(self, replay: str) -> ReplayStanding:  # noqa: ARG002 - the protocol's
        """Nobody knows it."""
        return ReplayStanding.UNKNOWN
