"""What a process has taken up of the commands about one partition's deliveries.

A delivery that a command begins owes no offset of an event: it owes the command, whose end is recorded when the delivery is settled. So its
tracker counts commands, by numbers of its own, and tells when each has ended. It is lost with the partition: then somebody else executes what has not ended.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dispatcher.core.commit.note import Who
from dispatcher.core.commit.offsets import PartitionTracker, Wanting


class CommandTracker(PartitionTracker):
    """The commands of one partition that are under way. What is an offset for other trackers is the command's number here."""

    __slots__ = ("_ended", "_under_way")

    def __init__(self, topic: str, partition: int, ended: Callable[[int, bool], None]) -> None:
        """`ended` is told of each that is settled, and whether the partition was lost before that."""
        super().__init__(topic, partition, 0)
        self._ended = ended
        self._under_way: set[int] = set()

    def __len__(self) -> int:
        return len(self._under_way)

    def track(
        self,
        offset: int,
        owed: int,  # noqa: ARG002 - one delivery a command
        wanted: Sequence[Wanting] = (),  # noqa: ARG002 - likewise
        who: Who | None = None,  # noqa: ARG002 - likewise
    ) -> None:
        """The command of this number is taken up."""
        self._under_way.add(offset)

    def settle(self, offset: int, subscription_id: str = "") -> None:  # noqa: ARG002 - there is one
        self._under_way.remove(offset)
        self._ended(offset, self.lost)

    def look(self, now: float, limit: float) -> bool:  # noqa: ARG002 - no commit waits for a command
        return False

    def observe(self, now: float) -> None:
        """Nothing is held back by a command: `held` stays 0."""
