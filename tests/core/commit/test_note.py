"""The note beside a commit: what is written is read again, and nothing else is ever believed."""

from __future__ import annotations

import base64
import random
import zlib
from itertools import pairwise

import pytest
from hypothesis import given, strategies as st

from dispatcher.core.commit.note import LIMIT, NOTHING, Note, Runs, note, read_note, tells_more

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
    assert read_note("events", 3, committed, text) == (tuple(runs), ())
    assert bool(text) is bool(runs)


@given(
    COMMITTED,
    st.lists(
        st.tuples(
            st.integers(0, 50),
            st.integers(1, 50),
            st.sampled_from([(), ("sub_1",), ("sub_1", "sub_2"), ("\u00e9" * 64, "x")]),
        ),
        max_size=80,
    ),
)
def test_what_is_done_for_some_subscriptions_only_is_read_again_too(
    committed: int, stretches: list[tuple[int, int, tuple[str, ...]]]
) -> None:
    done: list[tuple[int, int]] = []
    partly: dict[tuple[str, ...], list[tuple[int, int]]] = {}
    at = committed
    for owed, count, ids in stretches:
        first = at + owed + 1
        at = first + count
        (partly.setdefault(ids, []) if ids else done).append((first, at))
    text = note("events", 3, committed, done, partly)
    expected = sorted((first, end, ids) for ids, runs in partly.items() for first, end in runs)
    assert read_note("events", 3, committed, text) == (tuple(done), tuple(expected))


def test_what_does_not_fit_is_left_out_first_of_what_is_done_for_some_only() -> None:
    draw = random.Random(1)
    owed = sorted(draw.sample(range(1, 100_000), 5000))
    runs = [(a + 1, b) for a, b in pairwise([0, *owed]) if b > a + 1]
    done, half = runs[::3], {("sub_1",): runs[1::3], ("sub_2", "sub_3"): runs[2::3]}
    text = note("events", 0, 0, done, half)
    read = read_note("events", 0, 0, text)
    assert LIMIT / 2 < len(text) <= LIMIT
    assert read.done == tuple(done)
    assert 0 < len(read.partly) < 3000
    kept = [(first, end, ids) for ids, all_ in half.items() for first, end in all_]
    assert set(read.partly) < set(kept)
    assert max(read.partly)[0] < 60_000, "the lowest are kept"


@pytest.mark.parametrize("share", [0.001, 0.01, 0.05, 0.1, 0.3, 0.5, 0.9])
def test_what_does_not_fit_is_left_out_from_the_end(share: float) -> None:
    draw = random.Random(share)
    owed = [offset for offset in range(2_000_000) if draw.random() < share][:50_000]
    runs = [(a + 1, b) for a, b in pairwise([0, *owed]) if b > a + 1]
    text = note("events", 0, 0, runs)
    assert len(text) <= LIMIT
    read = read_note("events", 0, 0, text)
    assert read.done == tuple(runs[: len(read.done)])
    # Kept is all, or nearly what can be: the text is almost full.
    assert len(read.done) == len(runs) or len(text) > LIMIT * 0.85


@pytest.mark.parametrize(("scattered", "one_in"), [(2500, 20), (2500, 2), (1200, 300)])
def test_the_retries_of_four_partitions_at_the_default_cap_fit(scattered: int, one_in: int) -> None:
    draw = random.Random(1)
    owed = [0]
    while len(owed) < scattered:
        owed.append(owed[-1] + 1 + int(draw.expovariate(1 / (one_in - 1))))
    runs = [(a + 1, b) for a, b in pairwise(owed) if b > a + 1]
    assert read_note("events", 0, 0, note("events", 0, 0, runs)).done == tuple(runs)


@pytest.mark.parametrize("count", [1, 100_000])
def test_the_longest_run_takes_no_room(count: int) -> None:
    runs = [(1, 1 + count)]
    assert len(note("events", 0, 0, runs)) < 30


GOOD = note("events", 3, 1000, [(1005, 1010), (1011, 1500)], {("sub_1",): [(1003, 1005)]})


@given(st.text(max_size=200) | st.binary(max_size=100).map(lambda b: "1" + base64.b64encode(b).decode()))
def test_anything_else_tells_nothing(text: str) -> None:
    if text != GOOD:
        assert read_note("events", 3, 1000, text) == NOTHING


@given(st.data())
def test_a_note_with_one_character_changed_tells_nothing(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(GOOD) - 1))
    other = data.draw(st.characters(max_codepoint=0x17F))
    changed = GOOD[:at] + other + GOOD[at + 1 :]
    if changed != GOOD:
        assert read_note("events", 3, 1000, changed) == NOTHING
    assert read_note("events", 3, 1000, GOOD[:at]) == NOTHING


@pytest.mark.parametrize(
    ("topic", "partition", "committed"), [("other", 3, 1000), ("events", 2, 1000), ("events", 3, 999)]
)
def test_a_note_of_another_commit_tells_nothing(topic: str, partition: int, committed: int) -> None:
    """A mirror copies commits to another cluster, where the offsets are not the same; an operator moves them."""
    assert read_note("events", 3, 1000, GOOD) != NOTHING
    assert read_note(topic, partition, committed, GOOD) == NOTHING


def _signed(deflated: bytes) -> str:
    checksum = zlib.crc32(deflated, zlib.crc32(b"events\x003\x001000\x00")).to_bytes(4, "big")
    return "1" + base64.b64encode(checksum + deflated).decode()


def _deflated(body: bytes) -> bytes:
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    return deflate.compress(body) + deflate.flush()


def test_what_a_newer_program_wrote_or_blows_up_tells_nothing() -> None:
    good = b"\x03r\x05\x05"
    assert read_note("events", 3, 1000, _signed(_deflated(good))) == (((1005, 1010),), ())
    for text in (
        _signed(_deflated(b"\x03x\x05\x05")),
        _signed(_deflated(b"\x09r\x05\x05\xff")),
        _signed(_deflated(good + b"\x05\x01\x02\xc3\x28r")),
        _signed(b"not deflated"),
        _signed(_deflated(good)[:-1]),
        _signed(_deflated(b"\x03r\x05\x05" + bytes(2_000_000))),
        "2" + GOOD[1:],
    ):
        assert read_note("events", 3, 1000, text) == NOTHING


@given(st.binary(max_size=60))
def test_no_content_makes_reading_fail_or_takes_forever(content: bytes) -> None:
    read = read_note("events", 3, 1000, _signed(_deflated(content)))
    assert isinstance(read, Note)


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
