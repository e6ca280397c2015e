"""The note beside a commit: what is written is read again, and nothing else is ever believed."""

from __future__ import annotations

import base64
import random
import zlib
from itertools import pairwise

import pytest
from hypothesis import given, strategies as st

from dispatcher.core.completed import LIMIT, Runs, note, read_note, tells_more

COMMITTED = st.integers(0, 2**63 - 2**40)


def runs_from(committed: int, lengths: list[tuple[int, int]]) -> list[tuple[int, int]]:
    runs = []
    at = committed
    for owed, done in lengths:
        runs.append((at + owed, at + owed + done))
        at += owed + done
    return runs


lengths = st.lists(st.tuples(st.integers(1, 2000), st.integers(1, 2000)), max_size=60) | st.lists(
    st.tuples(st.integers(1, 3), st.integers(1, 3)), max_size=300
)


@given(COMMITTED, lengths)
def test_what_is_written_is_read_again(committed: int, lengths: list[tuple[int, int]]) -> None:
    runs = runs_from(committed, lengths)
    text = note("events", 3, committed, runs)
    assert len(text.encode("ascii")) <= LIMIT
    assert read_note("events", 3, committed, text) == runs
    assert bool(text) is bool(runs)


@pytest.mark.parametrize("share", [0.001, 0.01, 0.05, 0.1, 0.3, 0.5, 0.9])
def test_what_does_not_fit_is_left_out_from_the_end(share: float) -> None:
    draw = random.Random(share)
    owed = [offset for offset in range(2_000_000) if draw.random() < share][:50_000]
    runs = [(a + 1, b) for a, b in pairwise([0, *owed]) if b > a + 1]
    text = note("events", 0, 0, runs)
    assert len(text) <= LIMIT
    read = read_note("events", 0, 0, text)
    assert read == runs[: len(read)]
    # Kept is all, or nearly what can be: the text is almost full.
    assert len(read) == len(runs) or len(text) > LIMIT * 0.85


@pytest.mark.parametrize(("scattered", "one_in"), [(2500, 20), (2500, 2), (1200, 300)])
def test_the_retries_of_four_partitions_at_the_default_cap_fit(scattered: int, one_in: int) -> None:
    draw = random.Random(1)
    owed = [0]
    while len(owed) < scattered:
        owed.append(owed[-1] + 1 + int(draw.expovariate(1 / (one_in - 1))))
    runs = [(a + 1, b) for a, b in pairwise(owed) if b > a + 1]
    assert read_note("events", 0, 0, note("events", 0, 0, runs)) == runs


@pytest.mark.parametrize("count", [1, 100_000])
def test_the_longest_run_takes_no_room(count: int) -> None:
    runs = [(1, 1 + count)]
    assert len(note("events", 0, 0, runs)) < 30


GOOD = note("events", 3, 1000, [(1005, 1010), (1011, 1500)])


@given(st.text(max_size=200) | st.binary(max_size=100).map(lambda b: "1" + base64.b64encode(b).decode()))
def test_anything_else_tells_nothing(text: str) -> None:
    if text != GOOD:
        assert read_note("events", 3, 1000, text) == []


@given(st.data())
def test_a_note_with_one_character_changed_tells_nothing(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(GOOD) - 1))
    other = data.draw(st.characters(max_codepoint=0x17F))
    changed = GOOD[:at] + other + GOOD[at + 1 :]
    if changed != GOOD:
        assert read_note("events", 3, 1000, changed) == []
    assert read_note("events", 3, 1000, GOOD[:at]) == []


@pytest.mark.parametrize(
    ("topic", "partition", "committed"), [("other", 3, 1000), ("events", 2, 1000), ("events", 3, 999)]
)
def test_a_note_of_another_commit_tells_nothing(topic: str, partition: int, committed: int) -> None:
    """A mirror copies commits to another cluster, where the offsets are not the same; an operator moves them."""
    assert read_note("events", 3, 1000, GOOD)
    assert read_note(topic, partition, committed, GOOD) == []


def _signed(kind: bytes, deflated: bytes) -> str:
    checksum = zlib.crc32(kind + deflated, zlib.crc32(b"events\x003\x001000\x00")).to_bytes(4, "big")
    return "1" + base64.b64encode(checksum + kind + deflated).decode()


def _deflated(body: bytes) -> bytes:
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    return deflate.compress(body) + deflate.flush()


def test_what_a_newer_program_wrote_or_blows_up_tells_nothing() -> None:
    assert read_note("events", 3, 1000, _signed(b"r", _deflated(b"\x05\x05"))) == [(1005, 1010)]
    assert read_note("events", 3, 1000, _signed(b"x", _deflated(b"\x05\x05"))) == []
    assert read_note("events", 3, 1000, _signed(b"r", b"not deflated")) == []
    assert read_note("events", 3, 1000, _signed(b"r", _deflated(b"\x05\x05")[:-1])) == []
    assert read_note("events", 3, 1000, _signed(b"r", _deflated(bytes(2_000_000)))) == []
    assert read_note("events", 3, 1000, "2" + GOOD[1:]) == []


@given(
    st.integers(0, 20),
    st.sets(st.integers(0, 30)),
    st.sets(st.integers(0, 30)),
)
def test_one_knows_more_than_another_when_it_names_an_offset_that_the_other_does_not(
    committed: int, told: set[int], known: set[int]
) -> None:
    expected = any(offset not in known for offset in told if offset >= committed)
    mine = {offset for offset in known if offset >= committed}
    assert tells_more(_as_runs(told), _as_runs(mine), committed) is expected


def _as_runs(offsets: set[int]) -> Runs:
    runs: list[tuple[int, int]] = []
    for offset in sorted(offsets):
        if runs and runs[-1][1] == offset:
            runs[-1] = (runs[-1][0], offset + 1)
        else:
            runs.append((offset, offset + 1))
    return runs
