from __future__ import annotations

import pytest
from aiokafka.partitioner import murmur2 as reference
from hypothesis import given, strategies as st

from dispatcher.broker.base import BrokerRefused, Message
from dispatcher.broker.partitioning import (
    STICKY_BYTES,
    Partitioner,
    StickyPartitions,
    murmur2,
    partition_of,
)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_murmur2_gives_the_values_of_kafkas_own_tests(data: bytes, expected: int) -> None:
    assert murmur2(data) == expected & 0xFFFFFFFF


@given(st.binary(max_size=70))
def test_murmur2_agrees_with_another_implementation(data: bytes) -> None:
    assert murmur2(data) == reference(data)


@given(st.binary(max_size=40), st.integers(1, 1000))
def test_a_key_always_goes_to_the_same_valid_partition(key: bytes, partitions: int) -> None:
    chosen = partition_of(key, partitions)
    assert 0 <= chosen < partitions
    assert chosen == partition_of(key, partitions) == (reference(key) & 0x7FFFFFFF) % partitions


def test_keyless_messages_stay_for_some_kilobytes_and_move_on() -> None:
    sticky = StickyPartitions()
    chosen = [sticky.next("t", STICKY_BYTES // 4, 3) for _ in range(12)]
    first = chosen[0]
    assert chosen == [first] * 4 + [(first + 1) % 3] * 4 + [(first + 2) % 3] * 4


def test_topics_rotate_on_their_own() -> None:
    sticky = StickyPartitions()
    before = sticky.next("a", 1, 4)
    for _ in range(10):
        sticky.next("b", STICKY_BYTES, 4)
    assert sticky.next("a", 1, 4) == before


def test_a_message_goes_where_it_says_else_where_its_key_does_else_where_those_without_go() -> None:
    partitioner = Partitioner(lambda _: STICKY_BYTES)
    assert partitioner.choose(Message("t", b"", key=b"k", partition=2), 3) == 2
    assert partitioner.choose(Message("t", b"", key=b"k"), 3) == partition_of(b"k", 3)
    first, second = (partitioner.choose(Message("t", b""), 3) for _ in range(2))
    assert second == (first + 1) % 3


@pytest.mark.parametrize("partition", [-1, 3])
def test_a_partition_that_the_topic_does_not_have_is_refused(partition: int) -> None:
    with pytest.raises(BrokerRefused, match=f"topic t has no partition {partition}"):
        Partitioner(lambda _: 1).choose(Message("t", b"", partition=partition), 3)
