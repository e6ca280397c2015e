"""The audit trail: written behind the changes' backs, read back by every process, and bounded."""

from __future__ import annotations

import orjson
import pytest

from dispatcher.broker.base import BrokerUnavailable, TopicPartition
from dispatcher.control import audit
from dispatcher.control.access import Principal
from dispatcher.control.audit import AuditRecord, AuditTrail, read_audit
from dispatcher.runtime.tasks import Tasks
from tests.fakes import MemoryBroker
from tests.world import until

pytestmark = pytest.mark.looptime

TOPIC = "dispatcher.audit"
ADA = Principal("proxy:ada", "ada", "operator")


def trail(broker: MemoryBroker) -> AuditTrail:
    return AuditTrail(TOPIC, broker, wall=lambda: 1_760_000_000.0)


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker(TopicPartition(TOPIC, 0))


async def test_a_change_is_known_to_every_process(broker: MemoryBroker) -> None:
    tasks = Tasks()
    one, other = trail(broker), trail(broker)
    one.start(tasks)
    other.start(tasks)
    one.note("subscription.pause", "sub_a", ADA, "req_1", {"fields": ["url"]})
    one.note("key.revoke", "0123456789abcdef", ADA, "req_2", {})
    await until(lambda: len(other.records(None, None, 10)) == 2)
    assert [record.action for record in other.records(None, None, 10)] == [
        "key.revoke",
        "subscription.pause",
    ]
    [record] = other.records("sub_a", None, 10)
    assert record == AuditRecord(
        1_760_000_000_000,
        "subscription.pause",
        "sub_a",
        "proxy:ada",
        "ada",
        "operator",
        None,
        "req_1",
        {"fields": ["url"]},
    )
    assert [each.action for each in other.records(None, "key.", 10)] == ["key.revoke"]
    assert len(other.records(None, None, 1)) == 1
    await tasks.stop()


async def test_while_the_broker_is_away_records_wait_and_changes_do_not(broker: MemoryBroker) -> None:
    tasks = Tasks()
    one = trail(broker)
    broker.produce_errors += [BrokerUnavailable("away")] * 3
    one.start(tasks)
    for number in range(3):
        one.note("subscription.pause", f"sub_{number}", ADA, "", {})
    await until(lambda: one.warning is not None)
    await until(lambda: len(one.records(None, None, 10)) == 3)
    assert one.warning is None
    assert [record.subject for record in one.records(None, None, 10)] == ["sub_2", "sub_1", "sub_0"]
    await tasks.stop()


async def test_no_more_than_so_many_wait_and_are_kept(
    broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "WAITING", 5)
    one = trail(broker)
    for number in range(8):
        one.note("subscription.pause", f"sub_{number}", ADA, "", {})
    await one.finish(1.0)
    assert [message.key for message in broker.produced] == [b"sub_%d" % number for number in range(3, 8)]
    broker.produce_errors += [BrokerUnavailable("away")]
    one.note("subscription.pause", "sub_9", ADA, "", {})
    await one.finish(1.0)  # says so, and goes on
    assert len(broker.produced) == 5


def test_a_record_that_is_too_large_keeps_what_happened() -> None:
    large = AuditRecord(1, "a", "s", "b", "n", "operator", None, "", {"text": "x" * 10_000})
    assert read_audit(large.to_bytes()) == large._replace(details={"cut": True})
    odd = large._replace(details={"what": object(), "names": {"a"}})
    assert read_audit(odd.to_bytes()) is not None


@pytest.mark.parametrize("value", [None, b"", b"{", b"[]", b"{}", orjson.dumps({"at_ms": "x"})])
def test_what_somebody_else_has_written_there_is_passed_over(value: bytes | None) -> None:
    assert read_audit(value) is None
