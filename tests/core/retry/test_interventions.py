"""Commands as records: what is read, and which of two counts."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from dispatcher.core.retry.generations import CANCELLED, PURGED, SUPERSEDED
from dispatcher.core.retry.interventions import (
    CommandTable,
    Intervention,
    InvalidIntervention,
    encode_intervention,
    purge_key,
    read_intervention,
)

AT = ("events", 0, 7)


def command(**fields: Any) -> Intervention:
    values: dict[str, Any] = {
        "id": f"int_{1:024x}",
        "action": "retry",
        "subscription_id": "sub_1",
        "order": 100,
        "at_ms": 100,
        "until_ms": 1000,
        "by": "operator ops",
        "tenant": "acme",
        "generation": 2,
        "topic": "events",
        "offset": 7,
        "event_id": "evt_1",
        "event_type": "a",
    }
    return Intervention(**{**values, **fields})


def purge(number: int = 5, **fields: Any) -> Intervention:
    values: dict[str, Any] = {
        "id": f"int_{number:024x}",
        "action": "purge",
        "subscription_id": "sub_1",
        "order": 200,
        "at_ms": 200,
        "until_ms": 1000,
        "by": "operator ops",
        "ends": {"events": [8]},
    }
    return Intervention(**{**values, **fields})


@pytest.mark.parametrize("made", [command(dead_letter=(1, 2), ended=True), purge()])
def test_what_is_written_is_read_again(made: Intervention) -> None:
    assert read_intervention(made.key.encode(), encode_intervention(made)) == made


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (command(id="int_1"), "the id is none"),
        (command(subscription_id="a b"), "subscription_id is none"),
        (command(topic=""), "doesn't say which"),
        (command(event_id=""), "doesn't say which"),
        (command(generation=1), "no new generation"),
    ],
)
def test_what_is_no_command_is_refused(made: Intervention, why: str) -> None:
    with pytest.raises(InvalidIntervention, match=why):
        read_intervention(made.key.encode(), encode_intervention(made))


@pytest.mark.parametrize(
    "value",
    [b"", b"{}", b"[1]", b"\xff", b'{"id": 1}', encode_intervention(command()) + b"x", b"[" * 100_000],
)
def test_whatever_else_stands_in_the_topic_is_refused(value: bytes) -> None:
    with pytest.raises(InvalidIntervention):
        read_intervention(b"dlv_1", value)


def test_a_command_under_the_key_of_another_delivery_is_refused() -> None:
    for key in (None, b"", purge_key("sub_1").encode(), command(offset=8).key.encode()):
        with pytest.raises(InvalidIntervention, match="key"):
            read_intervention(key, encode_intervention(command()))


def test_the_higher_generation_counts_and_of_two_equal_ones_the_first() -> None:
    commands = CommandTable()
    first, second = command(), command(id=f"int_{2:024x}", action="cancel")
    assert commands.take(first)
    assert not commands.take(second)
    assert commands.get(first.key) == first
    assert commands.generations.verdict(AT, "sub_1", 1) == SUPERSEDED
    later = replace(second, generation=3)
    assert commands.take(later)
    assert commands.generations.verdict(AT, "sub_1", 2) == CANCELLED
    assert not commands.take(first)


def test_a_command_is_brought_up_to_date_by_its_own_id_and_its_end_stays() -> None:
    commands = CommandTable()
    first = command()
    begun_anew, ended = replace(first, generation=3), replace(first, ended=True)
    assert commands.take(first)
    assert commands.take(first)
    assert commands.take(begun_anew)
    assert not commands.take(ended), "the end of what was begun anew meanwhile is not its end"
    assert commands.take(replace(begun_anew, ended=True))
    assert not commands.take(begun_anew)
    found = commands.get(first.key)
    assert found is not None
    assert found.ended


def test_a_later_purge_takes_the_place_of_the_one_before() -> None:
    commands = CommandTable()
    assert commands.take(purge())
    assert commands.take(purge(6, order=300, ends={"events": [9, 4]}))
    assert commands.generations.verdict(("events", 0, 8), "sub_1", 1) == PURGED
    assert commands.generations.verdict(("events", 1, 3), "sub_1", 1) == PURGED
    assert len(commands) == 1


def test_a_tombstone_ends_the_command_that_it_names_and_no_other() -> None:
    commands = CommandTable()
    made, ends = command(), purge()
    commands.take(made)
    commands.take(ends)
    assert not commands.end(made.key, ends.id)
    assert commands.end(made.key, made.id)
    assert not commands.end(made.key, made.id)
    assert _any(commands)
    assert commands.end(ends.key, ends.id)
    assert not _any(commands)
    assert len(commands) == 0


def _any(commands: CommandTable) -> bool:
    return commands.generations.any


def test_what_has_had_its_time_is_named_and_tenants_are_counted() -> None:
    commands = CommandTable()
    commands.take(command())
    commands.take(purge(until_ms=5000))
    assert [each.action for each in commands.expired(1000)] == ["retry"]
    assert commands.expired(999) == []
    assert (commands.of_tenant("acme"), commands.of_tenant("globex")) == (1, 0)
