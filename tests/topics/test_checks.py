from __future__ import annotations

from typing import Any

import pytest

from dispatcher.broker.base import GroupState, PartitionInfo, Position, TopicInfo, TopicPartition
from dispatcher.settings.groups import RetrySettings, Settings
from dispatcher.topics.checks import concerns, takes_over, warnings

SETTINGS = Settings(retry=RetrySettings(tiers=(10.0, 600.0)), group="g")
DAY_MS = 24 * 3600 * 1000
OTHER = GroupState({TopicPartition("dispatcher.retry.10s", 0): Position(5)}, alive=False)


def topic(
    name: str, *, earliest: int = 0, latest: int = 0, committed: int | None = None, **config: Any
) -> TopicInfo:
    settings = {key.replace("_", "."): str(value) for key, value in config.items()}
    return TopicInfo(name, [PartitionInfo(0, earliest, latest, committed)], settings)


def said(*topics: TopicInfo, **readers: GroupState) -> list[str]:
    return warnings(SETTINGS, topics, {name.replace("_", "."): state for name, state in readers.items()})


@pytest.mark.parametrize("kept", [8 * DAY_MS, DAY_MS + 600_000, -1])
def test_a_retry_topic_that_keeps_its_records_for_a_day_beyond_its_delay_is_fine(kept: int) -> None:
    assert said(topic("dispatcher.retry.10m", retention_ms=kept, retention_bytes=-1)) == []


def test_a_retry_topic_that_loses_retries_is_named_with_what_to_do() -> None:
    (sentence,) = said(topic("dispatcher.retry.10m", retention_ms=300_000))
    assert "keeps its records for 5m" in sentence
    assert "--entity-name dispatcher.retry.10m --add-config retention.ms=605400000" in sentence
    (sentence,) = said(topic("dispatcher.retry.10m", retention_bytes=1000))
    assert "retention.bytes=-1" in sentence
    (sentence,) = said(topic("dispatcher.retry.10m", cleanup_policy="compact", retention_ms=5))
    assert "cleanup.policy=delete" in sentence


def test_other_topics_may_keep_what_they_like() -> None:
    assert said(topic("dispatcher.dead", retention_ms=5), topic("events", retention_ms=5)) == []


def test_retries_in_a_topic_that_is_not_listed_any_more_are_named() -> None:
    (sentence,) = said(topic("dispatcher.retry.1h", latest=12, committed=5))
    assert sentence.startswith("topic dispatcher.retry.1h holds 7 retries of group g.retry that nobody reads")
    assert "put 1h back" in sentence
    (sentence,) = said(topic("old.retry.10s", earliest=2, latest=12, committed=0))
    assert sentence.startswith("topic old.retry.10s holds 10 retries"), (
        "of another prefix: the group has read it"
    )


def test_what_is_empty_or_somebody_elses_or_listed_is_no_retry_left_over() -> None:
    assert said(topic("dispatcher.retry.1h", latest=12, committed=12)) == []
    assert said(topic("other.retry.10s", latest=12)) == []
    assert said(topic("dispatcher.retry.10s", latest=12, committed=2)) == []
    assert said(topic("dispatcher.retry.policy", latest=12)) == []


def test_another_dispatcher_on_the_same_retry_topics_is_named() -> None:
    (sentence,) = said(x_retry=GroupState(OTHER.committed, alive=True), g_retry=OTHER)
    assert "group x.retry reads the retry topics dispatcher.retry.* too" in sentence


def test_a_group_that_may_have_been_any_of_several_is_told_what_to_do() -> None:
    holding = topic("dispatcher.retry.10s", latest=9)
    (sentence,) = said(holding, x_retry=OTHER, y_retry=OTHER)
    assert "hold 9 records, and the groups x.retry, y.retry have" in sentence
    assert said(holding, x_retry=OTHER, y_retry=OTHER, g_retry=OTHER) == []
    assert said(holding, x_retry=OTHER) == [], "it goes on where that one had come to"
    (sentence,) = takes_over(SETTINGS, {"x.retry": OTHER})
    assert "goes on where that one" in sentence
    assert takes_over(SETTINGS, {"x.retry": OTHER, "g.retry": OTHER}) == []


def test_only_topics_that_could_hold_retries_are_asked_for() -> None:
    assert concerns(SETTINGS, "dispatcher.retry.10s")
    assert concerns(SETTINGS, "old.retry.1h30m")
    assert not concerns(SETTINGS, "orders")
    assert not concerns(SETTINGS, "orders.retry.later")
