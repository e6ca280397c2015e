"""What a replay has written and what of it is not done with: told by the offsets of its records and the group's commits.

Nobody counts deliveries for that. The commits of the group that reads `dispatcher.replay`, with their notes, say which offsets are done with, so
another replica that takes the job over knows it, too.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping

from dispatcher.core.commit.note import Note, Runs


class Outstanding:
    """The offsets of a job's records that aren't done with, by partition."""

    def __init__(self) -> None:
        self._offsets: dict[int, list[int]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._offsets.values()))

    def add(self, partition: int, offset: int) -> None:
        """A record of the job stands there. Offsets of a partition come in their order."""
        self._offsets.setdefault(partition, []).append(offset)

    def settle(self, partition: int, committed: int, note: Note) -> None:
        """The group has committed that: below it everything is done, and beyond it what the note says."""
        offsets = self._offsets.get(partition)
        if offsets is None:
            return
        left = _without(offsets[bisect_left(offsets, committed) :], note.done)
        if left:
            self._offsets[partition] = left
        else:
            del self._offsets[partition]

    def by_partition(self) -> Mapping[int, int]:
        """How many in each."""
        return {partition: len(offsets) for partition, offsets in self._offsets.items()}


def _without(offsets: list[int], done: Runs) -> list[int]:
    left: list[int] = []
    at = 0
    for first, end in done:
        begin = bisect_left(offsets, first, at)
        left += offsets[at:begin]
        at = bisect_left(offsets, end, begin)
    return left + offsets[at:]
