"""Each thing that can have become of an event, as one sentence."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from dispatcher.history.base import DELETED, DeliveryRow, DeliveryState, SubscriptionVersion
from dispatcher.history.explanation import (
    NOT_KNOWN,
    Explanation,
    ReadTime,
    Subject,
    VersionDocument,
    depends_on_reading,
    document_of,
    explain,
    read_time_of,
)
from tests.history.records import delivery_row

NOON = 1_760_000_000_000
AT = "2025-10-09T08:53:20.000Z"
LATER = "2025-10-09T08:53:21.000Z"
BEFORE = "2025-10-09T08:53:19.000Z"
BY_THE_RECORD = "that goes by the time in the event's record, as nothing tells when it was read"


READ = ReadTime(NOON, NOON)
"""At the time that the record has."""


def version(since: int = -1000, status: str = "active", tenant: str | None = "acme", **fields: Any) -> Any:
    document = VersionDocument(**{"event_types": ("invoice.*",), "created_ms": NOON - 5000, **fields})
    encoded = "{}" if status == DELETED else msgspec.json.encode(document).decode()
    return SubscriptionVersion("sub_a", NOON + since, tenant, status, encoded)


def delivery(state: DeliveryState, **fields: Any) -> DeliveryRow:
    of = {"attempts": 2, "last_ms": NOON + 900, "last_attempt": 2, "status": 503, "total_ms": 100}
    return delivery_row(**{"created_ms": NOON, "state": state, **of, **fields})


def told(row: DeliveryRow | None = None, *versions: SubscriptionVersion, **fields: Any) -> Explanation:
    subject = Subject(
        "sub_a",
        "invoice.paid",
        "acme",
        NOON,
        row,
        versions,
        "active",
        NOON + 1000,
        gap=False,
        keeps_all=True,
        schedule=(5.0, 60.0, 600.0),
    )
    return explain(subject._replace(**fields))


# With a delivery.


def test_delivered_with_what_answer() -> None:
    found = told(delivery(DeliveryState.DELIVERED, status=204))
    assert found == (
        "delivered",
        f"It was delivered to sub_a at {LATER}: attempt 2 was answered with status 204.",
    )


def test_retrying_until_when() -> None:
    found = told(delivery(DeliveryState.RETRYING, due_ms=NOON + 1000))
    assert found == (
        "retrying",
        (
            "It is not delivered to sub_a yet: attempt 2 ended with status 503 at 2025-10-09T08:53:20.900Z, and the next one is due at"
            f" {LATER}; the last one of its schedule at about 2025-10-09T09:03:21.000Z."
        ),
    )


def test_retrying_without_an_answer_says_why_there_was_none() -> None:
    found = told(delivery(DeliveryState.RETRYING, status=None, failure="timeout", due_ms=NOON))
    assert "ended with no answer (timeout)" in found.sentence


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (
            "disabled",
            f"the subscription is disabled since {LATER}, so that the delivery will go to the dead letters",
        ),
        ("paused", f"the subscription is paused since {LATER}, and the delivery is kept meanwhile"),
        (None, "the subscription is deleted by now, so that the delivery will be dropped"),
    ],
)
def test_what_is_owed_to_one_that_takes_nothing_now(status: str | None, said: str) -> None:
    versions = [version(), version(1000, status or DELETED)]
    found = told(delivery(DeliveryState.RETRYING, due_ms=NOON + 2000), *versions, status=status)
    assert found.outcome == "retrying"
    assert said in found.sentence


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("exhausted", "every attempt of its schedule had failed"),
        ("gone", "410"),
        ("disabled", "disabled"),
        ("body_expired", "deleted from its topic"),
        ("news", "of the reason news"),
    ],
)
def test_dead_because(reason: str, said: str) -> None:
    found = told(delivery(DeliveryState.DEAD, reason=reason))
    assert found.outcome == "dead"
    assert said in found.sentence
    assert found.sentence.endswith("; the last attempt ended with status 503.")


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("deleted", "the subscription was deleted"),
        ("cancelled", "somebody cancelled"),
        ("purged", "somebody ended everything"),
        ("superseded", "it was sent again"),
        ("expired_while_paused", "subscription.pause_keeps"),
    ],
)
def test_dropped_because(reason: str, said: str) -> None:
    found = told(delivery(DeliveryState.DROPPED, reason=reason, attempts=0, status=None))
    assert found.outcome == "dropped"
    assert said in found.sentence
    assert "the last attempt" not in found.sentence


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("breaker", "until the endpoint, at which nearly everything fails, takes something again"),
        ("paused", "until the subscription is resumed"),
        ("news", "waits to be sent"),
        (None, "waits to be sent"),
    ],
)
def test_pending_until(reason: str | None, said: str) -> None:
    found = told(delivery(DeliveryState.PENDING, reason=reason, attempts=0, status=None))
    assert found.outcome == "pending"
    assert said in found.sentence


# Without one.


def test_a_type_that_it_did_not_want_then() -> None:
    found = told(None, version(event_types=("order.*",)), version(1000), read=READ)
    assert found == (
        "no_match_type",
        "It was not owed to sub_a, which wanted order.* when the event was read: the type invoice.paid is not among that.",
    )
    found = told(None, version(event_types=tuple(f"a.{number}" for number in range(9))))
    assert "a.3, a.4 and 4 more when" in found.sentence


def test_another_tenants() -> None:
    assert told(None, version(tenant="globex")).outcome == "no_match_tenant"
    assert told(None, version(tenant=None)).outcome == "no_match_tenant"
    assert told(None, version(tenant="*")).outcome == "pending"


def test_made_later() -> None:
    made = version(1000, created_ms=NOON + 1000)
    said = f"It was not owed to sub_a, which was made at {LATER}, after the event was"
    assert told(None, made, read=READ) == ("made_later", f"{said} read at {AT}.")
    assert told(None, made, read=ReadTime(NOON - 1, NOON)) == ("made_later", f"{said} read.")
    assert told(None, made) == ("made_later", f"{said} published at {AT}; {BY_THE_RECORD}.")


def test_known_only_from_later_on() -> None:
    for created in (None, NOON - 5000):
        found = told(None, version(1000, created_ms=created))
        assert found.outcome == "unknown"
        assert f"what the subscription was before {LATER} is not known" in found.sentence


def test_nothing_known_of_it() -> None:
    assert told(None).outcome == "unknown"


def test_deleted_before() -> None:
    found = told(None, version(-2000), version(-1000, DELETED), read=READ)
    assert found == ("deleted", f"It was not owed to sub_a, which had been deleted at {BEFORE}.")


@pytest.mark.parametrize(
    ("status", "reason", "outcome", "said"),
    [
        ("paused", None, "paused", f"was paused then, since {BEFORE}"),
        (
            "pending",
            None,
            "pending_validation",
            f"had not agreed to be sent events by then (pending since {BEFORE})",
        ),
        (
            "disabled",
            "failing",
            "disabled",
            f"was disabled then, since {BEFORE} (everything to it had failed for days)",
        ),
        ("disabled", "news", "disabled", f"was disabled then, since {BEFORE}."),
    ],
)
def test_what_it_was_then_and_not_what_it_is_now(
    status: str, reason: str | None, outcome: str, said: str
) -> None:
    found = told(None, version(-1000, status, reason=reason), version(1000), read=READ)
    assert found.outcome == outcome
    assert said in found.sentence


def test_owed_and_nothing_recorded_yet() -> None:
    found = told(None, version(-8_000_000))
    assert found == ("pending", f"It is owed to sub_a, and no attempt has been recorded as of {LATER}.")
    found = told(None, version(), version(500, "paused"), as_of_ms=0)
    assert found.sentence == (
        "It is owed to sub_a, and no attempt has been recorded yet; the subscription is paused since 2025-10-09T08:53:20.500Z, perhaps"
        " before it was read."
    )


def test_a_gap_and_a_history_of_failures_only_are_no_reason_to_guess() -> None:
    found = told(None, version(), gap=True)
    assert found.outcome == "unknown"
    assert "the history has a gap" in found.sentence
    found = told(None, version(), keeps_all=False)
    assert found.outcome == "unknown"
    assert "delivered at the first attempt, of which this history keeps no row" in found.sentence


def test_a_document_that_cannot_be_read_says_nothing() -> None:
    broken = version()._replace(document="{")
    assert document_of(broken) == VersionDocument()
    assert told(None, broken).outcome == "no_match_type"


# When the event was read, and not when its producer says that it was made.


@pytest.mark.parametrize(
    "skew_ms", [-1_800_000, 0, 1_800_000], ids=["late or slow clock", "right", "fast clock"]
)
@pytest.mark.parametrize(
    ("read_at", "outcome"),
    [(-3000, "made_later"), (-1500, "pending"), (-500, "paused"), (500, "no_match_type"), (1500, "deleted")],
)
def test_what_it_was_when_the_event_was_read_counts_whatever_the_record_has(
    skew_ms: int, read_at: int, outcome: str
) -> None:
    lives = (
        version(-2000, created_ms=NOON - 2000),
        version(-1000, "paused"),
        version(0, event_types=("order.*",)),
        version(1000, DELETED),
    )
    read = ReadTime(NOON + read_at, NOON + read_at)
    found = told(None, *lives, time_ms=NOON + read_at + skew_ms, read=read, as_of_ms=NOON + 3_600_000)
    assert found.outcome == outcome
    assert BY_THE_RECORD not in found.sentence
    assert "perhaps" not in found.sentence


def test_a_time_that_is_known_roughly_says_what_held_all_of_it_and_no_more() -> None:
    lives = (version(-5000), version(-1000, "paused"), version(1000))
    assert told(None, *lives, read=ReadTime(NOON - 900, NOON + 900)).outcome == "paused"
    found = told(None, *lives, read=ReadTime(NOON - 2000, NOON))
    assert found == (
        "unknown",
        f"Whether it was owed to sub_a is not known: the subscription changed at {BEFORE}, at about the time at which the event was read.",
    )
    # One side alone: read by then, or from then on.
    assert told(None, *lives, read=ReadTime(None, NOON)).outcome == "unknown"
    assert told(None, *lives, read=ReadTime(NOON, None)).outcome == "unknown"
    assert (
        told(None, version(-1000, "paused", created_ms=None), read=ReadTime(NOON, None)).outcome == "paused"
    )
    # That it changed to something that wants the event neither makes no difference.
    both = (version(-5000, event_types=("a",)), version(0, event_types=("b",)))
    assert told(None, *both, read=ReadTime(NOON - 10, NOON + 10)).outcome == "no_match_type"


def test_without_a_time_it_goes_by_the_record_and_says_so_where_that_matters() -> None:
    found = told(None, version(-5000), version(-1000, "paused"))
    assert found.outcome == "paused"
    assert found.sentence.endswith(f"is not sent later by itself; {BY_THE_RECORD}.")
    same = told(None, version(-8_000_000, "paused", created_ms=None))
    assert same.outcome == "paused"
    assert BY_THE_RECORD not in same.sentence


def test_an_explanation_depends_on_the_reading_where_the_subscription_was_different_things() -> None:
    def subject(*versions: SubscriptionVersion, row: DeliveryRow | None = None) -> Subject:
        return Subject(
            "sub_a",
            "invoice.paid",
            "acme",
            NOON,
            row,
            versions,
            "active",
            NOON + 9000,
            gap=False,
            keeps_all=True,
        )

    assert not depends_on_reading(subject(version(-4_000_000)))
    assert depends_on_reading(subject(version(-4_000_000), version(-3_000_000, "paused")))
    assert depends_on_reading(subject(version(-4_000_000), version(8000, "paused")))
    assert not depends_on_reading(subject(version(-4_000_000), version(9001, "paused")))
    row = delivery(DeliveryState.DELIVERED)
    assert not depends_on_reading(subject(version(-4_000_000), version(8000, "paused"), row=row))


def test_when_an_event_was_read_is_told_by_its_deliveries() -> None:
    def row(**fields: Any) -> DeliveryRow:
        head = {
            "attempt": 1,
            "time_ms": NOON,
            "decision": "delivered",
            "queue_ms": 30,
            "total_ms": 5,
            **fields,
        }
        first = msgspec.json.encode({name: value for name, value in head.items() if value is not None})
        return delivery(DeliveryState.DELIVERED, first=first.decode())

    assert read_time_of([]) == NOT_KNOWN
    assert read_time_of([row()]) == (NOON - 30, NOON - 30)
    assert read_time_of([row(), row(queue_ms=70)]) == (NOON - 70, NOON - 70)
    # Parked at once: it was read by then.
    assert read_time_of([row(total_ms=None, decision="parked")]) == (None, NOON)
    # What came of a replay, of a person, or of an attempt whose first ones are not known says nothing of it.
    assert read_time_of([row(generation=2), row(attempt=2), row()._replace(first="{")]) == NOT_KNOWN
