"""What travels through the topic of interventions: commands of people about deliveries that are owed, or were.

The topic is compacted. The key is the delivery's id, or `subscription:<id>` for a purge, so the last command about each is kept. The value is JSON, and
its fields are those of `Intervention`. `core/retry/generations.py` says what a command means for records of older generations.

By itself, because the fields describe themselves to msgspec at run time.

Rules:

1. A command takes the place of another one about the same delivery if its generation is higher. Of two with the same generation the first in the topic
   counts, and whoever made the other one makes it anew.
2. A record with the id of the command in force, and at least its generation, brings that command up to date: it was begun anew, or it has ended.
3. A purge takes the place of the purge before it.
4. A tombstone names the command that it ends in its header `id`, and is passed over where another one is in force.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Final, Literal

import msgspec

from dispatcher.core.retry.generations import Generations
from dispatcher.core.retry.records import FIRST_GENERATION, Source, delivery_id

Action = Literal["retry", "cancel", "deliver", "purge"]

PURGE: Final = "purge"
CANCEL: Final = "cancel"

BY_LIMIT: Final = 128
"""Characters of who asked."""

_PURGE_KEY: Final = "subscription:"
_ID: Final = re.compile(r"int_[0-9a-f]{24}")
_SUBSCRIPTION_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
_Text = Annotated[str, msgspec.Meta(max_length=1024)]


class InvalidIntervention(ValueError):
    """The record is no command. The message is for people."""


class Intervention(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A command. What is about one delivery has its source and event; a purge has `ends`."""

    id: str
    """`int_` and 24 hex digits."""
    action: Action
    subscription_id: str
    order: _Count
    """Which of two commands came first: see `core/retry/generations.py`."""
    at_ms: _Count
    """When somebody asked, in Unix milliseconds."""
    until_ms: _Count
    """When nothing that it is about can be left anywhere, and it is forgotten."""
    by: Annotated[str, msgspec.Meta(max_length=BY_LIMIT)]
    """Who asked."""
    v: int = 1
    ended: bool = False
    """Whether its end is recorded. It is kept all the same: older generations may come out of tiers."""
    tenant: Annotated[str, msgspec.Meta(max_length=256)] | None = None
    """Of the event; of a purge, of the subscription."""
    generation: _Count = FIRST_GENERATION
    """The one that it begins. What it cancels is of the one before."""
    topic: Annotated[str, msgspec.Meta(max_length=249)] = ""
    partition: _Count = 0
    offset: _Count = 0
    event_id: _Text = ""
    event_type: _Text = ""
    attempts: _Count = 0
    """How many were made before."""
    dead_letter: tuple[_Count, _Count] | None = None
    """Partition and offset of the dead letter that has the event's body, where its source may have none."""
    ends: dict[str, list[_Count]] = {}
    """Of a purge: one past the last event of each partition, by topic."""

    @property
    def key(self) -> str:
        """The record's key."""
        return (
            key_of(self.source, self.subscription_id)
            if self.action != PURGE
            else purge_key(self.subscription_id)
        )

    @property
    def source(self) -> Source:
        """Where the event was read."""
        return Source(self.topic, self.partition, self.offset)


def key_of(source: tuple[str, int, int], subscription_id: str) -> str:
    """The key of commands about a delivery: its id."""
    return delivery_id(*source, subscription_id)


def purge_key(subscription_id: str) -> str:
    """The key of purges of a subscription."""
    return _PURGE_KEY + subscription_id


_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(Intervention).decode


def encode_intervention(intervention: Intervention) -> bytes:
    """The record's value."""
    return _encode(intervention)


def read_intervention(key: bytes | None, value: bytes) -> Intervention:
    """Read a record; raises InvalidIntervention, whatever the bytes."""
    try:
        found = _decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidIntervention(str(error)[:200]) from None
    if not _ID.fullmatch(found.id):
        raise InvalidIntervention("the id is none")
    if not _SUBSCRIPTION_ID.fullmatch(found.subscription_id):
        raise InvalidIntervention("subscription_id is none")
    if found.action != PURGE and (not found.topic or not found.event_id or not found.event_type):
        raise InvalidIntervention("it is about a delivery and doesn't say which")
    if found.action != PURGE and found.generation <= FIRST_GENERATION:
        raise InvalidIntervention("it begins no new generation")
    if key is None or key != found.key.encode():
        raise InvalidIntervention("the key is not that of what it is about")
    return found


class CommandTable:
    """The commands in force, by their keys, and the generations that they have begun."""

    def __init__(self) -> None:
        self.generations = Generations()
        self._commands: dict[str, Intervention] = {}

    def __len__(self) -> int:
        return len(self._commands)

    def get(self, key: str) -> Intervention | None:
        """The one in force."""
        return self._commands.get(key)

    def all(self) -> list[Intervention]:
        """Those that there are now."""
        return list(self._commands.values())

    def take(self, command: Intervention) -> bool:
        """The next one of the topic; whether it is in force by that (rules 1 to 3)."""
        key = command.key
        known = self._commands.get(key)
        if known is not None and not _follows(command, known):
            return False
        self._commands[key] = command
        if command.action == PURGE:
            self.generations.note_purge(command.subscription_id, command.order, _ends_of(command))
        else:
            self.generations.note(
                command.source,
                command.subscription_id,
                command.generation,
                command.order,
                cancels=command.action == CANCEL,
            )
        return True

    def end(self, key: str, id: str) -> bool:  # noqa: A002 - the field's name
        """The tombstone of a command; whether that was the one in force (rule 4)."""
        known = self._commands.get(key)
        if known is None or known.id != id:
            return False
        del self._commands[key]
        if known.action == PURGE:
            self.generations.forget_purge(known.subscription_id)
        else:
            self.generations.forget(known.source, known.subscription_id)
        return True

    def expired(self, now_ms: int) -> list[Intervention]:
        """Those that nothing can be left of."""
        return [command for command in self._commands.values() if command.until_ms <= now_ms]

    def of_tenant(self, tenant: str) -> int:
        """How many there are about what is a tenant's."""
        return sum([command.tenant == tenant for command in self._commands.values()])


def _follows(command: Intervention, known: Intervention) -> bool:
    if command.id != known.id:
        return command.action == PURGE or command.generation > known.generation
    if command.generation != known.generation:
        return command.generation > known.generation
    return command.ended or not known.ended


def _ends_of(command: Intervention) -> Mapping[tuple[str, int], int]:
    return {
        (topic, partition): end for topic, ends in command.ends.items() for partition, end in enumerate(ends)
    }
