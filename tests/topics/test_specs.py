"""The topics that there must be: what nobody may lose is kept long enough, and each has the rights that are asked for."""

from __future__ import annotations

from dispatcher.settings.groups import (
    AttemptsSettings,
    HistorySettings,
    RetrySettings,
    Settings,
    TopicsSettings,
)
from dispatcher.topics.specs import missing_topics, needed_groups, needed_rights, needed_specs, topic_specs

DAY_MS = 24 * 3600 * 1000
ON_KAFKA = "kafka://127.0.0.1:9092"


def test_each_topic_is_there_once() -> None:
    names = [spec.name for spec in topic_specs(Settings(broker=ON_KAFKA))]
    assert len(set(names)) == len(names)
    assert {
        "events",
        "dispatcher.subscriptions",
        "dispatcher.replicas",
        "dispatcher.progress",
        "dispatcher.dead",
        "dispatcher.attempts",
        "dispatcher.audit",
    } <= {*names}
    assert "dispatcher.retry.parked" in names


def test_no_topic_of_our_own_is_taken_for_one_of_events() -> None:
    own = [spec.name for spec in topic_specs(Settings(broker=ON_KAFKA)) if spec.name != "events"]
    assert len(own) > 10
    for name in own:
        (_, said), *_ = TopicsSettings(events=("events", name)).between_fields()
        assert said == f"must not contain {name}: the dispatcher writes to that topic itself"


def test_a_retry_outlives_its_delay_and_a_week_in_which_nobody_reads() -> None:
    specs = {spec.name: spec for spec in topic_specs(Settings(retry=RetrySettings(tiers=(30.0, 6 * 3600.0))))}
    for level, delay_ms in (("30s", 30_000), ("6h", 6 * 3600 * 1000)):
        config = specs[f"dispatcher.retry.{level}"].config
        assert int(config["retention.ms"]) == delay_ms + 7 * DAY_MS
        assert config["cleanup.policy"] == "delete"
    assert specs["dispatcher.retry.parked"].config["retention.bytes"] == "-1"


def test_what_the_api_has_made_and_what_people_command_is_compacted_in_one_partition_and_never_expires() -> (
    None
):
    followed = {"dispatcher.subscriptions", "dispatcher.interventions"}
    found = [spec for spec in topic_specs(Settings()) if spec.name in followed]
    assert {spec.name for spec in found} == followed
    for spec in found:
        assert (spec.partitions, spec.exact) == (1, True)
        assert spec.config["cleanup.policy"] == "compact"
        assert "retention.ms" not in spec.config


def test_only_what_is_used_is_asked_for() -> None:
    quiet = Settings(
        attempts=AttemptsSettings(log="none"), topics=TopicsSettings(events=("a", "b"), prefix="hooks-")
    )
    names = [spec.name for spec in topic_specs(quiet)]
    assert names[:2] == ["a", "b"]
    assert "hooks-attempts" not in names
    assert "hooks-progress" not in names, "the embedded broker keeps notes beside its commits"
    assert all(name.startswith("hooks-") for name in names[2:])


def test_the_rights_are_those_that_each_topic_is_used_with() -> None:
    rights = needed_rights(Settings(broker=ON_KAFKA))
    assert set(rights) == {spec.name for spec in topic_specs(Settings(broker=ON_KAFKA))}
    assert rights["events"] == ("READ",)
    assert rights["dispatcher.dead"] == rights["dispatcher.attempts"] == ("READ", "WRITE")
    unread = needed_rights(Settings(broker=ON_KAFKA, history=HistorySettings(store="off")))
    assert unread["dispatcher.attempts"] == ("WRITE",)
    assert unread["dispatcher.dead"] == ("READ", "WRITE"), "dead letters are shown and sent again"
    assert rights["dispatcher.retry.parked"] == rights["dispatcher.progress"] == ("READ", "WRITE")
    assert rights["dispatcher.interventions"] == ("READ", "WRITE")


def test_missing_topics_are_named_with_what_makes_each() -> None:
    said = missing_topics(
        topic_specs(Settings(broker=ON_KAFKA)), ["dispatcher.progress", "dispatcher.retry.parked"]
    )
    assert said.startswith("missing topics: dispatcher.progress, dispatcher.retry.parked. ")
    assert "`dispatcher topics --create`" in said
    assert (
        "`kafka-topics.sh --bootstrap-server ... --create --topic dispatcher.progress --partitions 1"
        " --config cleanup.policy=compact" in said
    )
    assert "--create --topic dispatcher.retry.parked --config cleanup.policy=delete" in said
    assert "--topic dispatcher.attempts" not in said


def test_a_process_asks_for_the_topics_of_its_roles() -> None:
    api = Settings(broker=ON_KAFKA, roles=("api",))
    read, both = ("READ",), ("READ", "WRITE")
    always = {"dispatcher.subscriptions": both, "dispatcher.replicas": both}
    own = ("dispatcher.audit", "dispatcher.interventions", "dispatcher.replay", "dispatcher.replays")
    sources = dict.fromkeys(("events", "dispatcher.dead"), read)
    assert needed_rights(api) == {**always, **dict.fromkeys(own, both), **sources}
    assert {spec.name for spec in needed_specs(api)} == needed_rights(api).keys()
    history = Settings(broker=ON_KAFKA, roles=("history",))
    logs = {"events": read, "dispatcher.attempts": read, "dispatcher.dead": read}
    assert needed_rights(history) == {**always, **logs}
    assert needed_groups(history) == {}
    shared = HistorySettings(store="postgresql://dispatcher@db/dispatcher", events=False)
    assert needed_groups(Settings(broker=ON_KAFKA, roles=("history",), history=shared)) == {
        "dispatcher.history": read
    }
    assert "events" not in needed_rights(Settings(broker=ON_KAFKA, roles=("history",), history=shared))
    deliver = Settings(broker=ON_KAFKA, roles=("deliver",))
    assert needed_groups(deliver) == {"dispatcher": read, "dispatcher.retry": read}
    assert needed_rights(deliver)["dispatcher.attempts"] == ("WRITE",)
    assert topic_specs(deliver) == topic_specs(api)
    assert needed_specs(deliver) == [spec for spec in topic_specs(deliver) if spec.name != "dispatcher.audit"]
