"""The loops over many small records that go to Kafka, in a file of their own to be compiled (`hatch_build.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from dispatcher.broker.base import Entry
from dispatcher.broker.partitioning import partition_of

_NO_HEADERS: Final[list[tuple[str, bytes]]] = []


def by_partition(entries: Sequence[Entry], partitions: int) -> dict[int, list[Entry]]:
    """The entries that go to each of the `partitions` of a topic, in their order."""
    shares: dict[int, list[Entry]] = {}
    for entry in entries:
        number = partition_of(entry[0], partitions)
        share = shares.get(number)
        if share is None:
            share = shares[number] = []
        share.append(entry)
    return shares


def fill_bulk(batch: Any, entries: Sequence[Entry], at: int, most: int) -> int:
    """How many of `most` entries, from the one at `at` on, the batch has taken.

    Past the library's `BatchBuilder.append`, which takes longer than the C code behind it: 0.14 instead of 0.36 us a record.
    """
    append = batch._builder.append
    count = 0
    for key, value, timestamp in entries[at : at + most]:
        if append(count, timestamp, key, value, _NO_HEADERS) is None:
            break
        count += 1
    batch._relative_offset = count
    return count
