"""The offsets of a partition of `dispatcher.replay`: as of any partition, and somebody hears of each that is done with.

A replay waits until an attempt has ended before it starts the next one, so that it never stands in a lane's queue before a fresh delivery.
"""

from __future__ import annotations

from collections.abc import Callable

from dispatcher.core.commit.note import NOTHING, Note
from dispatcher.core.commit.offsets import PartitionTracker


class ReplayTracker(PartitionTracker):
    """The offsets of a partition of the replay topic."""

    __slots__ = ("freed",)

    def __init__(self, topic: str, partition: int, start: int, ahead: Note = NOTHING) -> None:
        """As of any tracker."""
        super().__init__(topic, partition, start, ahead)
        self.freed: Callable[[], None] | None = None
        """Told that something is done with."""

    def settle(self, offset: int, subscription_id: str = "") -> None:
        """It is done with."""
        super().settle(offset, subscription_id)
        if self.freed is not None:
            self.freed()
