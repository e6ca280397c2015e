"""Which record of which generation of a delivery is superseded: not to be sent any more.

A delivery's first generation begins with its event. A manual retry, a cancel and a replay each begin the next one. Records of an older generation
still lie in tiers, in the parked topic, in lanes and in the hold. Whoever takes one of them up asks `Generations.verdict`, and settles the record
without sending it where the verdict is not None.

Every replica reads the same commands in the same order (`dispatcher.interventions`), so all replicas come to the same verdict.

Rules:

1. A command about a delivery begins the generation G: what is of a generation below G is `SUPERSEDED`, or `CANCELLED` where the command cancels.
2. A purge ends what a subscription was owed before it. That is told by offsets and not by clocks: an event that stood in its topic when the purge was
   asked for is `PURGED`, later events are not.
3. A command that was made after a purge (by `order`) is not purged. A command from before it is.
4. A replay is purged if it began before the purge. Its id says when that was (`replay_id`), so no replica has to know the job.
5. A replay supersedes nothing. Its generation is the one that `next_generation` gives, so that no former command supersedes it, and at least the one of its
   job (`ReplayJob.generation`), so that no other replay's delivery of the same event has it.

`order` is Unix milliseconds, or one more than the newest order that its maker had read (`next_order`). So a command that was made with the knowledge of
another one comes behind it, whatever the clocks say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from dispatcher.core.retry.records import FIRST_GENERATION

SUPERSEDED: Final = "superseded"
"""A later generation of the delivery takes its place."""

CANCELLED: Final = "cancelled"
"""Somebody has cancelled the delivery."""

PURGED: Final = "purged"
"""Somebody has ended all that its subscription was owed."""

_REPLAY: Final = "rpl_"
_ORDER_DIGITS: Final = 12

EventSource = tuple[str, int, int]
"""Topic, partition and offset that an event was read from."""


class _Command(NamedTuple):
    generation: int
    order: int
    cancels: bool


class _Purge(NamedTuple):
    order: int
    ends: Mapping[tuple[str, int], int]


class Generations:
    """The generations that commands have begun. One table for a process; it changes as commands are read."""

    __slots__ = ("_commands", "_newest", "_purges", "any")

    def __init__(self) -> None:
        self.any = False
        """Whether there is any command: false, and nothing more need be asked."""
        self._commands: dict[EventSource, dict[str, _Command]] = {}
        self._purges: dict[str, _Purge] = {}
        self._newest = 0

    def note(
        self, source: EventSource, subscription_id: str, generation: int, order: int, *, cancels: bool
    ) -> None:
        """A command about one delivery begins this generation. It takes the place of an earlier one."""
        self._newest = max(self._newest, order)
        self._commands.setdefault(source, {})[subscription_id] = _Command(generation, order, cancels)
        self.any = True

    def forget(self, source: EventSource, subscription_id: str) -> None:
        """No record of an older generation of the delivery is left anywhere."""
        commands = self._commands.get(source)
        if commands is not None:
            commands.pop(subscription_id, None)
            if not commands:
                del self._commands[source]
        self._look()

    def note_purge(self, subscription_id: str, order: int, ends: Mapping[tuple[str, int], int]) -> None:
        """All that the subscription was owed has ended. `ends`: one past the last event of each topic and partition."""
        self._newest = max(self._newest, order)
        self._purges[subscription_id] = _Purge(order, ends)
        self.any = True

    def forget_purge(self, subscription_id: str) -> None:
        """Nothing that the purge has ended is left anywhere."""
        self._purges.pop(subscription_id, None)
        self._look()

    def _look(self) -> None:
        self.any = bool(self._commands) or bool(self._purges)

    def verdict(
        self, source: EventSource, subscription_id: str, generation: int, replay: str | None = None
    ) -> str | None:
        """Why a delivery of this generation is not to be sent (any more); None if it is. `replay` is the id of the replay that it belongs to."""
        command: _Command | None = None
        commands = self._commands.get(source)
        if commands is not None:
            command = commands.get(subscription_id)
            if command is not None and generation < command.generation:
                return CANCELLED if command.cancels else SUPERSEDED
        purge = self._purges.get(subscription_id)
        if purge is None:
            return None
        if replay is not None:
            begun = replay_order(replay)
            return PURGED if begun is None or begun < purge.order else None
        if generation == FIRST_GENERATION:
            topic, partition, offset = source
            return PURGED if offset < purge.ends.get((topic, partition), 0) else None
        return None if command is not None and command.order > purge.order else PURGED

    def purged(self, subscription_id: str) -> int | None:
        """The order of the last purge of a subscription, if there is one."""
        purge = self._purges.get(subscription_id)
        return None if purge is None else purge.order

    def next_generation(
        self, source: EventSource, subscription_id: str, known: int = FIRST_GENERATION
    ) -> int:
        """What a manual retry, a cancel or a replay begins. `known` is the generation that the caller knows of, from a row or a record."""
        commands = self._commands.get(source)
        command = None if commands is None else commands.get(subscription_id)
        return 1 + (known if command is None else max(known, command.generation))

    def next_order(self, now_ms: int) -> int:
        """The `order` of a command or a replay that is made now."""
        return max(now_ms, self._newest + 1)


def replay_id(order: int, random_hex: str) -> str:
    """The id of a replay that begins now: `rpl_`, its order in 12 hex digits, and some random ones."""
    return f"{_REPLAY}{order:0{_ORDER_DIGITS}x}{random_hex}"


def replay_order(replay: str) -> int | None:
    """When the replay began, as its id tells; None for an id that `replay_id` has not made."""
    digits = replay[len(_REPLAY) : len(_REPLAY) + _ORDER_DIGITS]
    if not replay.startswith(_REPLAY) or len(digits) != _ORDER_DIGITS:
        return None
    try:
        return int(digits, 16)
    except ValueError:
        return None
