"""The operator's decision to give up a batch that can't be unpacked, as a record of the control topic.

`dispatcher topics skip TOPIC PARTITION OFFSET` writes one. Every replica follows that topic, also a replica that is
started later, so the command works while the dispatcher runs and while it is stopped. A replica obeys only where its
reading stands at a batch that holds the offset and can't be unpacked: a record that can be read is never passed over.

The key says all: `skip:<partition>:<offset>:<topic>`.
"""

from __future__ import annotations

from typing import Final, NamedTuple

KIND: Final = "skip"
_PREFIX: Final = f"{KIND}:"


class Skip(NamedTuple):
    """Pass over the unreadable batch that holds this offset."""

    topic: str
    partition: int
    offset: int
    topic_id: str | None = None

    def concerns(self, partition: tuple[str, int], topic_id: str | None) -> bool:
        """Whether it is about that partition of a topic with that id (None: nobody knows)."""
        if (self.topic, self.partition) != partition:
            return False
        return self.topic_id is None or topic_id is None or self.topic_id == topic_id


def skip_key(skip: Skip) -> bytes:
    """The key of its record."""
    key = f"{_PREFIX}{skip.partition}:{skip.offset}:{skip.topic}"
    return (key if skip.topic_id is None else f"{key}:{skip.topic_id}").encode()


def read_skip(key: bytes | None) -> Skip | None:
    """The skip that a record's key asks for; None for other keys."""
    if key is None or not key.startswith(_PREFIX.encode()):
        return None
    try:
        _, partition, offset, topic, *rest = key.decode("ascii").split(":", 4)
        return Skip(topic, int(partition), int(offset), rest[0] if rest else None)
    except ValueError:
        return None


def skip_command(topic: str, partition: int, offset: int) -> str:
    """The command that writes it."""
    return f"dispatcher topics skip {topic} {partition} {offset}"
