"""What happens to a member of a group when its partitions come and go, whichever broker it is: where
reading starts, and how its owner is told.

An owner that fails to take over or to give up its partitions can't be left to believe that it did, and the
group can't wait for it either. So its exception stops nothing here: it is kept, and raised by its next `poll`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import structlog

from dispatcher.broker.base import AssignmentListener, BrokerError, Position, TopicPartition

log = structlog.get_logger(__name__)


def start_of(committed: Position | None, earliest: int, end: int, *, from_latest: bool) -> Position:
    """Where reading a partition starts that holds the offsets from `earliest` to before `end`."""
    if committed is None:
        return Position(end if from_latest else earliest)
    if earliest <= committed.offset <= end:
        return committed
    # Deleted by retention, or the topic was made anew: everything that is there is unread, and what was
    # noted of that offset holds no more.
    return Position(earliest)


class Owner:
    """The listener of a member of `group`, called so that its exceptions reach its next `poll`."""

    __slots__ = ("_failure", "_group", "_listener")

    def __init__(self, group: str, listener: AssignmentListener) -> None:
        self._group = group
        self._listener = listener
        self._failure: Exception | None = None

    async def assigned(self, starts: Mapping[TopicPartition, Position]) -> None:
        try:
            await self._listener.on_assigned(starts)
        except Exception as error:
            log.exception("on_assigned failed", group=self._group)
            self._failure = error

    async def revoked(self, partitions: Collection[TopicPartition]) -> None:
        try:
            await self._listener.on_revoked(partitions)
        except Exception as error:
            log.exception("on_revoked failed", group=self._group)
            self._failure = error

    def fail(self, error: Exception) -> None:
        """The next `poll` has to raise this."""
        self._failure = error

    def raise_failure(self) -> None:
        """Called by `poll`: raises what failed since, once."""
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise BrokerError(f"group {self._group}: a change of assignment failed: {failure}") from failure
