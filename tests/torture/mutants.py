"""Daemons with a fault built in: what the torture must find, or it would find nothing.

`python tests/torture/mutants.py NAME run --config ...` is `dispatcher run --config ...` with that fault.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any

from dispatcher.cli import main as dispatcher
from dispatcher.core.commit.offsets import PartitionTracker
from dispatcher.delivery.outbox import Outbox


def commits_what_is_owed() -> None:
    """The commit passes over deliveries that wait for their retry."""
    _replace(PartitionTracker, "committable", property(lambda tracker: tracker.next))
    notes_nothing()


def settles_before_the_broker_has_it() -> None:
    """A retry counts as written two seconds before it is."""
    put = Outbox.put

    def early(outbox: Outbox, message: Any, written: Callable[[], None]) -> None:
        written()
        asyncio.get_running_loop().call_later(2.0, put, outbox, message, lambda: None)

    _replace(Outbox, "put", early)


def notes_one_too_many() -> None:
    """Of each stretch that is done, one offset more is said to be."""
    completed = PartitionTracker.completed

    def more(tracker: PartitionTracker) -> list[tuple[int, int]]:
        runs = completed(tracker)
        return [
            (first, min(end + 1, runs[number + 1][0] if number + 1 < len(runs) else end + 1))
            for number, (first, end) in enumerate(runs)
        ]

    _replace(PartitionTracker, "completed", more)


def notes_nothing() -> None:
    """Commits say nothing of what is done beyond them, as it was before there were notes."""
    _replace(PartitionTracker, "completed", lambda _: [])
    _replace(PartitionTracker, "partly", lambda _: {})


def notes_whole_events_only() -> None:
    """An event that waits for one subscription is owed to all of them."""
    _replace(PartitionTracker, "partly", lambda _: {})


def _replace(owner: type, name: str, value: object) -> None:
    setattr(owner, name, value)


LOSING = (commits_what_is_owed, settles_before_the_broker_has_it, notes_one_too_many)
REPEATING = (notes_nothing, notes_whole_events_only)

if __name__ == "__main__":
    {each.__name__: each for each in (*LOSING, *REPEATING)}[sys.argv.pop(1)]()
    dispatcher(prog_name="dispatcher")
