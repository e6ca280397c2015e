"""The note beside a commit: what is written is read again, and nothing else is ever believed."""

from __future__ import annotations

import base64
import random
import zlib
from collections.abc import Mapping
from itertools import pairwise

import pytest
from hypothesis import example, given, settings, strategies as st

from dispatcher.core.commit.note import (
    LIMIT,
    NOTHING,
    RECORD_LIMIT,
    Note,
    Partly,
    Pointer,
    Runs,
    Who,
    checksum_of,
    pack,
    pointing,
    read_note,
    read_whole,
    reserving,
    tells_more,
)

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


def note(
    topic: str, partition: int, committed: int, done: Runs, partly: Partly | None = None, limit: int = LIMIT
) -> str:
    return pack(topic, partition, committed, done, partly, limit).text


def flat(partly: Mapping[Who, Runs]) -> tuple[tuple[int, int, Who], ...]:
    return tuple(sorted((first, end, who) for who, runs in partly.items() for first, end in runs))


@given(COMMITTED, lengths)
def test_what_is_written_is_read_again(committed: int, lengths: list[tuple[int, int]]) -> None:
    runs = runs_from(committed, lengths)
    text = note("events", 3, committed, runs)
    assert len(text.encode("ascii")) <= LIMIT
    assert read_note("events", 3, committed, text) == Note(tuple(runs), ())
    assert bool(text) is bool(runs)
    assert not runs or text.startswith("1"), "a program of the version before reads it"


def served(*ids: str) -> Who:
    return Who(owed=False, ids=ids)


def owed(*ids: str) -> Who:
    return Who(owed=True, ids=ids)


whose = st.sampled_from(
    [None, served("sub_1"), served("sub_1", "sub_2"), owed("sub_1"), owed("\u00e9" * 64, "x"), owed()]
)
stretches = st.lists(st.tuples(st.integers(0, 50), st.integers(1, 50), whose), max_size=80)


def split(
    committed: int, stretches: list[tuple[int, int, Who | None]]
) -> tuple[list[tuple[int, int]], dict[Who, list[tuple[int, int]]]]:
    done: list[tuple[int, int]] = []
    partly: dict[Who, list[tuple[int, int]]] = {}
    at = committed
    for gap, count, who in stretches:
        first = at + gap + 1
        at = first + count
        (done if who is None else partly.setdefault(who, [])).append((first, at))
    return done, partly


@given(COMMITTED, stretches)
def test_what_is_done_for_some_subscriptions_only_is_read_again_too(
    committed: int, stretches: list[tuple[int, int, Who | None]]
) -> None:
    done, partly = split(committed, stretches)
    packed = pack("events", 3, committed, done, partly, record=RECORD_LIMIT)
    assert packed.whole is None, "it fits"
    assert read_note("events", 3, committed, packed.text) == Note(tuple(done), flat(partly))


@settings(deadline=None)
@given(COMMITTED, stretches, st.integers(0, 600))
@example(5, [(0, 1, owed("sub_1")), (0, 1, None), (1, 1, served("sub_1"))], 0)
def test_what_does_not_fit_is_whole_in_the_record_and_never_wrong_in_the_text(
    committed: int, stretches: list[tuple[int, int, Who | None]], limit: int
) -> None:
    done, partly = split(committed, stretches)
    packed = pack("events", 3, committed, done, partly, limit, record=RECORD_LIMIT)
    everything = Note(tuple(done), flat(partly))
    if packed.whole is None:
        assert read_note("events", 3, committed, packed.text) == everything
        return
    assert len(packed.text) <= limit
    pointer = Pointer(1, 2**40, checksum_of(packed.whole))
    text = pointing("events", 3, committed, packed.text, pointer, max(limit, 60))
    assert len(text) <= max(limit, 60)
    read = read_note("events", 3, committed, text)
    assert read.pointer == pointer
    assert set(read.done) <= set(done)
    assert set(read.partly) <= set(flat(partly))
    assert read_whole("events", 3, committed, packed.whole, pointer) == everything
    assert read_whole("events", 3, committed + 1, packed.whole, pointer) is None
    assert read_whole("other", 3, committed, packed.whole, pointer) is None
    assert read_whole("events", 3, committed, packed.whole, pointer._replace(checksum=7)) is None
    assert read_whole("events", 3, committed, None, pointer) is None


def spared(note: Note, fan_out: int) -> int:
    """How many deliveries are not sent again, of events that each have so many."""
    return sum(end - first for first, end in note.done) * fan_out + sum(
        (end - first) * (fan_out - len(who.ids) if who.owed else len(who.ids))
        for first, end, who in note.partly
    )


def test_one_endpoint_that_fails_takes_the_same_room_at_any_fan_out() -> None:
    """10,000 events, each served to all of its subscriptions but one: whoever they are, it is one set."""
    partly = {owed("sub_failing"): [(1, 10_001)]}
    assert len(note("events", 0, 0, [], partly)) < 60


def test_ten_thousand_tenants_with_a_subscription_each_on_a_failing_host_fit_into_a_record() -> None:
    draw = random.Random(1)
    ids = [f"sub_{draw.getrandbits(130):026x}" for _ in range(10_000)]
    partly = {owed(id_): [(number + 1, number + 2)] for number, id_ in enumerate(ids)}
    packed = pack("events", 0, 0, [], partly, record=RECORD_LIMIT, served=2.0)
    assert packed.whole is not None
    assert len(packed.whole) < 300_000
    pointer = Pointer(0, 7, checksum_of(packed.whole))
    whole = read_whole("events", 0, 0, packed.whole, pointer)
    assert whole is not None
    assert whole.partly == flat(partly)
    assert len(read_note("events", 0, 0, packed.text).partly) > 100, "the text has what it can"


def test_a_million_offsets_of_which_a_tenth_are_done_fit_into_a_record() -> None:
    draw = random.Random(2)
    runs: list[tuple[int, int]] = []
    for offset in range(1, 1_000_000):
        if draw.random() < 0.1:
            if runs and runs[-1][1] == offset:
                runs[-1] = (runs[-1][0], offset + 1)
            else:
                runs.append((offset, offset + 1))
    packed = pack("events", 0, 0, runs, record=RECORD_LIMIT)
    assert packed.whole is not None
    assert len(packed.whole) < 80_000
    whole = read_whole("events", 0, 0, packed.whole, Pointer(0, 0, checksum_of(packed.whole)))
    assert whole is not None
    assert whole.done == tuple(runs)


def test_what_does_not_fit_keeps_what_spares_most() -> None:
    """Long runs of finished events, and events that thousands have had, before an event that one has had."""
    draw = random.Random(3)
    done: list[tuple[int, int]] = []
    partly: dict[Who, list[tuple[int, int]]] = {}
    at = 1
    for number in range(4000):
        length = 200 if number % 100 == 0 else 1
        if number % 3:
            done.append((at, at + length))
        else:
            # Every id is new: such an entry takes ten times the room of a run.
            who = owed(f"sub_{draw.getrandbits(100):x}") if number % 2 else served(f"sub_{number}")
            partly.setdefault(who, []).append((at, at + 1))
        at += length + 1
    text = note("events", 0, 0, done, partly)
    assert LIMIT * 0.8 < len(text) <= LIMIT
    read = read_note("events", 0, 0, text)
    assert {(first, end) for first, end in done if end - first > 100} <= set(read.done)
    # The rule before: all that is done, else nothing of the rest, cut from the end.
    by_order = read_note("events", 0, 0, note("events", 0, 0, done))
    assert spared(read, 2) >= spared(by_order, 2) * 0.95


@pytest.mark.parametrize("share", [0.001, 0.01, 0.05, 0.1, 0.3, 0.5, 0.9])
def test_what_does_not_fit_fills_the_room_there_is(share: float) -> None:
    draw = random.Random(share)
    scattered = [offset for offset in range(2_000_000) if draw.random() < share][:50_000]
    runs = [(a + 1, b) for a, b in pairwise([0, *scattered]) if b > a + 1]
    text = note("events", 0, 0, runs)
    assert len(text) <= LIMIT
    read = read_note("events", 0, 0, text)
    assert set(read.done) <= set(runs)
    # Kept is all, or nearly what can be: the text is almost full.
    assert len(read.done) == len(runs) or len(text) > LIMIT * 0.85
    spared = sum(end - first for first, end in read.done)
    lowest = sum(end - first for first, end in runs[: len(read.done)])
    assert spared >= lowest, "as many of the lowest spare less"


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


GOOD = note("events", 3, 1000, [(1005, 1010), (1011, 1500)], {served("sub_1"): [(1003, 1005)]})


@given(
    st.text(max_size=200)
    | st.binary(max_size=100).map(lambda b: "1" + base64.b64encode(b).decode())
    | st.binary(max_size=100).map(lambda b: "2" + base64.b64encode(b).decode())
)
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
    assert read_note("events", 3, 1000, _signed(_deflated(good))) == Note(((1005, 1010),), ())
    for text in (
        _signed(_deflated(b"\x03x\x05\x05")),
        _signed(_deflated(b"\x09r\x05\x05\xff")),
        _signed(_deflated(good + b"\x05\x01\x02\xc3\x28r")),
        _signed(b"not deflated"),
        _signed(_deflated(good)[:-1]),
        _signed(_deflated(b"\x03r\x05\x05" + bytes(20_000_000))),
        "3" + GOOD[1:],
    ):
        assert read_note("events", 3, 1000, text) == NOTHING


@given(st.binary(max_size=60))
def test_no_content_makes_reading_fail_or_takes_forever(content: bytes) -> None:
    signed = _signed(_deflated(content))
    for text in (signed, "2" + signed[1:]):
        assert isinstance(read_note("events", 3, 1000, text), Note)
    value = b"2" + base64.b64decode(signed[1:])
    read_whole("events", 3, 1000, value, Pointer(0, 0, checksum_of(value)))


def test_what_the_version_before_wrote_is_read() -> None:
    content = bytearray(b"\x03r\x05\x05")
    for ids, body in (([b"sub_1"], b"r\x14\x02"), ([b"a", b"b"], b"r\x03\x01")):
        section = bytes([len(ids)]) + b"".join(bytes([len(id_)]) + id_ for id_ in ids) + body
        content += bytes([len(section)]) + section
    expected = ((1003, 1004, served("a", "b")), (1020, 1022, served("sub_1")))
    assert read_note("events", 3, 1000, _signed(_deflated(bytes(content)))) == Note(((1005, 1010),), expected)


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


def test_a_number_that_is_too_long_for_an_offset_ends_it() -> None:
    """One that fills what fits beside a commit, inflated, would hold the loop for hours."""
    largest = [(1, (1 << 63) - 1)]
    assert read_note("events", 0, 0, pack("events", 0, 0, largest).text).done == tuple(largest)
    endless = pack("events", 0, 0, [(1, 1 << 71)]).text
    assert read_note("events", 0, 0, endless) == NOTHING


def _inflated(text: str) -> bytes:
    """As programs read it that know of no reservation."""
    data = base64.b64decode(text[1:])
    assert data[:4] == zlib.crc32(data[4:], zlib.crc32(b"events\x003\x001000\x00")).to_bytes(4, "big")
    return zlib.decompressobj(-15).decompress(data[4:])


PARTS: list[tuple[Runs, Partly]] = [
    ((), {}),
    ([(1005, 1010)], {}),
    ([(1005, 1010), (1011, 1500)], {served("sub_1"): [(1003, 1005)]}),
]


@pytest.mark.parametrize(("done", "partly"), PARTS)
@pytest.mark.parametrize("reserved", [1000, 1001, 2**62])
def test_a_note_says_how_far_its_owner_may_read_and_older_programs_read_the_rest(
    done: Runs, partly: Partly, reserved: int
) -> None:
    text = pack("events", 3, 1000, done, partly, reserved=reserved).text
    assert read_note("events", 3, 1000, text) == Note(tuple(done), flat(partly), None, reserved)
    if without := note("events", 3, 1000, done, partly):
        assert text[0] == without[0]
        assert _inflated(text) == _inflated(without)
    more = reserving("events", 3, 1000, text, reserved + 7)
    assert more is not None
    assert read_note("events", 3, 1000, more) == Note(tuple(done), flat(partly), None, reserved + 7)


def test_what_can_not_be_read_reserves_nothing() -> None:
    assert reserving("events", 3, 1000, "", 1007) == pack("events", 3, 1000, (), reserved=1007).text
    assert reserving("events", 3, 1000, "of a newer version", 1007) is None
    assert reserving("events", 3, 1000, GOOD, 1007, limit=20) is None
    assert pack("events", 3, 1000, (), reserved=1007, limit=10, record=RECORD_LIMIT) == ("", None)
    endless = _signed(_deflated(b"\x03r\x05\x05") + b"\xff" * 9)
    assert read_note("events", 3, 1000, endless) == NOTHING


def test_a_note_that_points_to_its_record_says_it_too() -> None:
    partly = {served(f"sub_{n}", f"sub_{n + 1}"): [(1000 + 2 * n, 1001 + 2 * n)] for n in range(1, 3000)}
    packed = pack("events", 3, 1000, (), partly, record=RECORD_LIMIT, reserved=9000)
    assert packed.whole is not None
    pointer = Pointer(1, 2, checksum_of(packed.whole))
    text = pointing("events", 3, 1000, packed.text, pointer)
    assert len(text) <= LIMIT
    assert read_note("events", 3, 1000, text)[2:] == (pointer, 9000)
    whole = read_whole("events", 3, 1000, packed.whole, pointer)
    assert whole == Note((), flat(partly), None, 9000)
    later = reserving("events", 3, 1000, text, 9500)
    assert later is not None
    assert read_note("events", 3, 1000, later)[2:] == (pointer, 9500)


def test_of_millions_of_runs_and_ids_in_a_few_bytes_nothing_is_believed() -> None:
    """They would take seconds of the loop and hundreds of megabytes."""
    bitmap = b"b" + b"\x55" * 1_000_000
    length = bytes([len(bitmap) & 127 | 128, len(bitmap) >> 7 & 127 | 128, len(bitmap) >> 14])
    bombs = [
        _signed(_deflated(length + bitmap)),
        "2" + _signed(_deflated(b"\0" + length + bitmap))[1:],
        # Runs of one set; and one set of many ids that are the same.
        "2" + _signed(_deflated(b"\0\0\x01\x01\0\x02\0\x01a" + b"\x01\x01\x01" * 1_000_000))[1:],
        "2" + _signed(_deflated(b"\0\0\x01\x01\0\x80\x89\x7a\0\x01a" + b"\x01" * 1_000_000))[1:],
    ]
    for text in bombs:
        assert len(text) < 8000
        assert read_note("events", 3, 1000, text) == NOTHING


def test_of_more_runs_than_are_believed_the_lowest_are_written() -> None:
    runs = [(2 * number + 1, 2 * number + 2) for number in range(150_000)]
    packed = pack("events", 0, 0, runs, limit=1 << 20)
    assert read_note("events", 0, 0, packed.text).done == tuple(runs[:100_000])
