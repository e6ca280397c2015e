"""How far a partition's owner may read before it commits again, and what a former owner may have read.

What was taken up must be told from what was not, after a crash too: a subscription that has been paused since is owed the one and
not the other. So the note beside a commit reserves a stretch of offsets ahead of the reader, and records are taken up only within it.
Whatever the next owner finds below `handed_below` may have been taken up. After a crash some of it was not: at most what had
been reserved, and only what was there when the partition was taken over. After a partition was given up in good order there is no doubt.

Rules:

1. Records are taken up only below `below`, unless a commit can't be made: their owner says so then.
2. `below` is what the note says that was committed last. While another one is under way, it is the less of the two.
3. What is handed on is never forgotten by a later note, whether it was read meanwhile or not.
"""

from __future__ import annotations

from typing import Final

from dispatcher.core.commit.note import Note

_AHEAD: Final = 1000
"""Offsets that are reserved ahead of the reader, at least."""


class Reservation:
    """The reservation of one partition's owner."""

    __slots__ = ("_reader_was_at", "announced", "below", "handed_below")

    def __init__(self, start: int, ahead: Note) -> None:
        """The owner reads from `start` on; `ahead` is the note of the one before."""
        self.handed_below = max(
            start if ahead.reserved is None else ahead.reserved,
            ahead.done[-1][1] if ahead.done else start,
            ahead.partly[-1][1] if ahead.partly else start,
        )
        """What is owed below this may have been taken up by a former owner, when its subscriptions took deliveries."""
        self.below = start
        """Records below this may be taken up."""
        self.announced = start
        """One past the last record that is about to be taken up."""
        self._reader_was_at = start  # when the last one was made

    def wanted(self, reader: int, *, last: bool = False) -> int:
        """What the next note has to reserve with the reader there: twice what it has read since the one before.

        `last`: nothing more will be taken up.
        """
        if last:
            return max(self.handed_below, reader)
        ahead = max(_AHEAD, 2 * (reader - self._reader_was_at))
        return max(self.handed_below, self.announced, reader + ahead)

    def making(self, below: int) -> None:
        """A note that reserves so much is about to be committed."""
        self.below = min(self.below, below)

    def made(self, below: int, reader: int) -> None:
        """It is committed."""
        self.below = below
        self._reader_was_at = reader

    def inherit(self, ahead: Note) -> None:
        """The partition is assigned again, with that note, which may be somebody else's."""
        if ahead.reserved is not None:
            self.handed_below = max(self.handed_below, ahead.reserved)
