from __future__ import annotations

import shlex

import pytest
from hypothesis import given, strategies as st

from dispatcher.core.control.skips import Skip, read_skip, skip_command, skip_key

TOPICS = st.text("abcXYZ019._-", min_size=1, max_size=249)


@given(TOPICS, st.integers(0, 2**31 - 1), st.integers(0, 2**63 - 1), st.none() | st.text("aZ0_-", min_size=1))
def test_the_key_says_what_is_skipped(topic: str, partition: int, offset: int, topic_id: str | None) -> None:
    skip = Skip(topic, partition, offset, topic_id)
    assert read_skip(skip_key(skip)) == skip


@pytest.mark.parametrize(
    ("asked", "there", "concerns"),
    [("a", "a", True), ("a", "b", False), (None, "b", True), ("a", None, True), (None, None, True)],
)
def test_a_topic_made_anew_is_another_one(asked: str | None, there: str | None, concerns: bool) -> None:
    assert Skip("events", 1, 7, asked).concerns(("events", 1), there) is concerns
    assert not Skip("events", 1, 7, asked).concerns(("events", 2), there)
    assert not Skip("events", 1, 7, asked).concerns(("others", 1), there)


@pytest.mark.parametrize(
    "key", [None, b"", b"skip:", b"skip:1:2", b"skip:x:2:t", b"skip:1:y:t", b"sub_1", b"skip:1:2:\xff"]
)
def test_any_other_key_of_the_control_topic_is_none(key: bytes | None) -> None:
    assert read_skip(key) is None


def test_the_command_is_the_one_that_the_command_line_has() -> None:
    assert shlex.split(skip_command("events", 3, 120)) == [
        "dispatcher",
        "topics",
        "skip",
        "events",
        "3",
        "120",
    ]
