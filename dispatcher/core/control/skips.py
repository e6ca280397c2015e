"""The operator's word that a batch which can't be unpacked is given up, as a record of the control topic.

`dispatcher topics skip TOPIC PARTITION OFFSET` writes one. Every replica follows that topic, also one that is started
later, so the command works while the dispatcher runs and while it is stopped. A replica obeys only where
its reading stands at a batch that holds the offset and can't be unpacked: a record that can be read is never passed over.

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


def skip_key(skip: Skip) -> bytes:
    """The key of its record."""
    return f"{_PREFIX}{skip.partition}:{skip.offset}:{skip.topic}".encode()


def read_skip(key: bytes | None) -> Skip | None:
    """What the key of a record of the control topic asks for; None where it is no skip."""
    if key is None or not key.startswith(_PREFIX.encode()):
        return None
    try:
        _, partition, offset, topic = key.decode("ascii").split(":", 3)
        return Skip(topic, int(partition), int(offset))
    except ValueError:
        return None


def skip_command(topic: str, partition: int, offset: int) -> str:
    """The command that writes it."""
    return f"dispatcher topics skip {topic} {partition} {offset}"
