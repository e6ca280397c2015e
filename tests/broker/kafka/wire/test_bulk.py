from __future__ import annotations

import gc
import itertools
import weakref
from typing import Any

import google_crc32c
import pytest
from aiokafka.record.util import calc_crc32c
from aiokafka.util import NO_EXTENSIONS

from dispatcher.broker.base import UnreadableBatch
from dispatcher.broker.kafka.wire.bulk import FetchAnswer
from tests.broker.kafka.wire.batches import (
    batch,
    damaged,
    fetched,
    long,
    position,
    unreadable,
)


def test_a_broken_batch_ends_it() -> None:
    result = fetched(damaged(batch(0, 2)) + batch(2, 2))
    error = unreadable(result)
    assert (error.first, error.last) == (0, 1)
    assert "checksum" in error.reason
    assert position(result) == 0
    assert result.getall(10) == []  # not what is behind it


def test_a_broken_batch_ends_where_the_next_one_begins_whatever_its_head_says() -> None:
    error = unreadable(fetched(long(batch(10, 5)) + batch(17, 5), 10))
    assert (error.first, error.last) == (10, 16)
    assert "offsets 10 to 16" in str(error)
    # What isn't an offset behind its first is not believed either.
    error = unreadable(fetched(damaged(batch(10, 5)) + bytes(100), 10))
    assert (error.first, error.last) == (10, 14)


def test_of_a_broken_batch_alone_in_its_fetch_no_more_is_passed_over_than_its_head_counts() -> None:
    error = unreadable(fetched(long(batch(10, 5)), 10))
    assert (error.first, error.last) == (10, 14), "records from 15 on may be readable"
    error = unreadable(fetched(long(batch(10, 5), 19), 15))
    assert (error.first, error.last) == (15, 29), "the broker says that the batch goes on"
    error = unreadable(fetched(damaged(batch(10, 5)), 10))
    assert (error.first, error.last) == (10, 14)


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
def test_what_is_before_a_broken_batch_comes(limit: int) -> None:
    data = batch(0, 2) + damaged(batch(2, 2)) + batch(4, 1)
    result = fetched(data)
    taken: list[Any] = []
    for _ in range(5):
        if not result.has_more():
            result = fetched(data[len(batch(0, 2)) :], position(result))  # the broker's next answer
        taken += result.getall(limit)
        if type(taken[-1]) is UnreadableBatch:
            break
    assert [record.offset for record in taken] == [0, 1, 2]
    assert (taken[-1].first, taken[-1].last) == (2, 3)
    assert position(result) == 2


def test_one_dropped_half_read_is_gone_at_once() -> None:
    result = fetched(batch(0, 5))
    assert len(result.getall(2)) == 2
    gone = weakref.ref(result._partition_records)
    gc.disable()
    try:
        del result
        assert gone() is None
    finally:
        gc.enable()


def test_an_answer_without_a_whole_batch_is_said_and_not_passed_over() -> None:
    """The library calls it too large, and goes on behind its first offset."""
    answer = FetchAnswer(batch(0, 3)[:-1])
    assert answer.has_next()
    error = unreadable(fetched(batch(0, 3)[:-1]))
    assert (error.first, error.last) == (0, 2)
    assert not FetchAnswer(None).has_next()


def test_the_fast_checksum_is_the_librarys() -> None:
    """Else every batch would be broken, or none."""
    assert NO_EXTENSIONS is False
    assert google_crc32c.implementation == "c"
    for size in itertools.chain(range(40), [1000, 100_000]):
        data = bytes(number % 251 for number in range(size))
        assert google_crc32c.value(data) == calc_crc32c(data)
