"""Who was this process before it was started again, and who is its living twin."""

from __future__ import annotations

from typing import Any

import pytest
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.coordinator.protocol import ConsumerProtocolMemberMetadata

from dispatcher.broker.kafka.predecessor import (
    GroupMember,
    MemberName,
    Twin,
    assignor,
    member_name,
    older_twin,
    predecessors,
    refusal,
)

GIVEN = MemberName("one", given=True, nonce="b", started_ms=2_000)
MADE = MemberName("host-8080", given=False, nonce="b", started_ms=2_000)


def member(
    id_: str, name: MemberName | str, host: str = "/10.0.0.1", subscription: bytes | None = None
) -> GroupMember:
    text = name if isinstance(name, str) else name.name
    return GroupMember(id_, f"dispatcher.{text}", host, subscription)


def subscribed(user_data: bytes) -> bytes:
    return bytes(ConsumerProtocolMemberMetadata(0, ["events"], user_data).encode())


@pytest.mark.parametrize(
    ("setting", "host", "port", "expected"),
    [
        ("auto", "web-1", 8080, "web-1-8080"),
        ("auto", "web 1/x", 8080, "web_1_x-8080"),
        ("auto", "web-1", 0, None),  # any free port: another one at the next start
        ("auto", "localhost", 8080, None),
        ("auto", "localhost.localdomain", 8080, None),
        ("auto", "", 8080, None),
        ("off", "web-1", 8080, None),
        ("pod-0", "web-1", 0, "pod-0"),
    ],
)
def test_the_name_of_a_process(setting: str, host: str, port: int, expected: str | None) -> None:
    found = member_name(setting, host, port)
    assert (found and found.name) == expected
    assert found is None or found.given == (setting == "pod-0")


def test_two_processes_of_one_machine_have_two_names() -> None:
    first, second = member_name("auto", "laptop", 8080), member_name("auto", "laptop", 8081)
    assert first is not None
    assert second is not None
    assert first.name != second.name


def test_a_predecessor_has_our_name_and_is_not_us() -> None:
    ours = member("us", GIVEN)
    old = member("old", GIVEN, host="/10.0.0.9")
    others = [member("x", "two"), GroupMember("y", "dispatcher", "/10.0.0.1", None), member("z", "one-2")]
    assert predecessors(ours, [ours, old, *others], GIVEN, "dispatcher") == [old]


def test_a_name_that_was_made_from_the_hosts_holds_for_the_same_address_only() -> None:
    """Two machines may be called the same: a member that lives is not to be told to leave."""
    ours = member("us", MADE)
    old, stranger = member("old", MADE), member("stranger", MADE, host="/10.0.0.9")
    assert predecessors(ours, [ours, old, stranger], MADE, "dispatcher") == [old]


def test_of_two_twins_the_one_that_was_started_later_finds_the_other() -> None:
    older = MemberName("one", given=True, nonce="a", started_ms=1_000)
    members = [
        member("1", older, host="/10.0.0.9", subscription=subscribed(older.user_data())),
        member("2", GIVEN, subscription=subscribed(GIVEN.user_data())),
    ]
    assert older_twin(members, GIVEN, "dispatcher") == Twin("/10.0.0.9", 1_000)
    assert older_twin(members, older, "dispatcher") is None
    at_once = MemberName("one", given=True, nonce="c", started_ms=2_000)
    same = [member("3", at_once, subscription=subscribed(at_once.user_data())), *members[1:]]
    assert (older_twin(same, GIVEN, "dispatcher") is None) != (
        older_twin(same, at_once, "dispatcher") is None
    )


@pytest.mark.parametrize(
    "subscription", [None, b"", b"\xff", subscribed(b""), subscribed(b"[]"), subscribed(b'{"nonce": 1}')]
)
def test_a_member_that_says_nothing_of_itself_is_no_twin(subscription: bytes | None) -> None:
    assert older_twin([member("1", GIVEN, subscription=subscription)], GIVEN, "dispatcher") is None


def test_what_a_member_carries_is_what_its_twin_reads() -> None:
    named: Any = assignor(GIVEN)
    assert named.name == RoundRobinPartitionAssignor.name
    assert named.metadata(["events"]).user_data == GIVEN.user_data()
    assert assignor(None) is RoundRobinPartitionAssignor


def test_the_refusal_says_what_to_do() -> None:
    text = str(refusal("g", GIVEN, Twin("/10.0.0.9", 1_700_000_000_000)))
    assert "'one'" in text
    assert "/10.0.0.9" in text
    assert "2023-11-14T22:13:20Z" in text
    assert "kafka.member_name" in text
