from __future__ import annotations

from dispatcher.broker.base import Jump, TopicPartition, Why
from dispatcher.delivery.jumps import Jumps
from dispatcher.telemetry.metrics import Metrics


def test_what_retention_took_is_counted_and_said() -> None:
    metrics = Metrics()
    jumps = Jumps("g", metrics)
    jumps.note(Jump(TopicPartition("t", 0), Why.RETENTION, 10, 30), 10)
    jumps.note(Jump(TopicPartition("t", 1), Why.RETENTION, 0, 7), 7)
    assert metrics.offsets_skipped == {"t": 10 + 7}
    assert metrics.jumps == {"retention": 2}
    (sentence,) = jumps.warnings()
    assert sentence.startswith("17 offsets of topic t were deleted by retention before group g read them")


def test_what_had_all_been_delivered_is_no_loss() -> None:
    metrics = Metrics()
    jumps = Jumps("g", metrics)
    jumps.note(Jump(TopicPartition("t", 0), Why.RETENTION, 10, 12), 0)
    assert jumps.warnings() == []
    assert metrics.offsets_skipped == {"t": 0}


def test_each_topic_and_reason_is_one_sentence_however_often() -> None:
    jumps = Jumps("g", Metrics())
    for partition in (0, 1, 1):
        jumps.note(Jump(TopicPartition("t", partition), Why.EXPIRED, None, 5))
    jumps.note(Jump(TopicPartition("t", 0), Why.MADE_ANEW, 9, 0))
    first, second = jumps.warnings()
    assert "(2 partitions)" in first
    assert "deleted and made anew" in second
