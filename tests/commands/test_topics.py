from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dispatcher.broker.base import PartitionInfo
from dispatcher.commands.topics import lag
from tests.commands import console
from tests.kafka.server import Cluster

NEEDED = (
    "events",
    "dispatcher.subscriptions",
    "dispatcher.replicas",
    "dispatcher.interventions",
    *(f"dispatcher.retry.{delay}" for delay in ("30s", "2m", "10m", "1h", "6h", "parked")),
    "dispatcher.replay",
    "dispatcher.replays",
    "dispatcher.dead",
    "dispatcher.attempts",
    "dispatcher.audit",
)


def rows(output: str) -> list[list[str]]:
    return [cells for line in output.splitlines() if len(cells := line.split()) == 6 and cells[-1] != "lag"]


def test_missing_topics_are_named_and_made_on_demand(tmp_path: Path) -> None:
    before = console.dispatcher("topics", cwd=tmp_path)
    assert before.returncode == 1
    assert before.stderr == f"Error: missing: {', '.join(NEEDED)}; dispatcher topics --create makes them\n"
    created = console.dispatcher("topics", "--create", cwd=tmp_path)
    assert created.returncode == 0
    assert created.stderr == "".join(f"created {name}\n" for name in NEEDED)
    after = console.dispatcher("topics", cwd=tmp_path)
    assert after.returncode == 0
    assert {row[0] for row in rows(after.stdout)} == set(NEEDED)


def test_what_was_published_is_shown_as_lag(tmp_path: Path) -> None:
    console.dispatcher("publish", "ping", "--count", "25", cwd=tmp_path)
    shown = console.dispatcher("topics", "--create", cwd=tmp_path)
    events = [row for row in rows(shown.stdout) if row[0] == "events"]
    assert sum(int(row[-1]) for row in events) == 25
    assert sum(int(row[-3]) for row in events) == 25
    assert {row[-2] for row in events} == {"-"}


def test_only_what_is_behind_is_shown_when_asked_for(tmp_path: Path) -> None:
    console.dispatcher("topics", "--create", cwd=tmp_path)
    well = console.dispatcher("topics", "--behind", cwd=tmp_path)
    assert (well.returncode, rows(well.stdout)) == (0, [])
    assert well.stderr == "every partition of the event topics is read to its end\n"
    for topic in ("events", "dispatcher.retry.2m"):
        console.dispatcher("publish", "ping", "--topic", topic, "--force", cwd=tmp_path)
    ((topic, _, earliest, latest, committed, lag_),) = rows(
        console.dispatcher("topics", "--behind", cwd=tmp_path).stdout
    )
    assert (topic, earliest, latest, committed, lag_) == ("events", "0", "1", "-", "1")


def test_what_waits_in_the_retry_topics_is_lag_of_the_group_that_reads_them(tmp_path: Path) -> None:
    console.dispatcher("topics", "--create", cwd=tmp_path)
    for topic, count in (("dispatcher.retry.2m", 3), ("dispatcher.retry.parked", 4), ("dispatcher.dead", 5)):
        console.dispatcher(
            *("publish", "ping", "--count", str(count), "--topic", topic, "--force"), cwd=tmp_path
        )
    shown = console.dispatcher("topics", cwd=tmp_path).stdout
    waiting = {
        topic: sum(int(row[-1]) for row in rows(shown) if row[0] == topic)
        for topic in ("dispatcher.retry.30s", "dispatcher.retry.2m", "dispatcher.retry.parked")
    }
    assert waiting == {"dispatcher.retry.30s": 0, "dispatcher.retry.2m": 3, "dispatcher.retry.parked": 4}
    assert {row[-1] for row in rows(shown) if row[0] == "dispatcher.dead"} == {"-"}
    assert "groups dispatcher, dispatcher.retry" in shown


def test_the_first_command_on_a_fresh_broker_makes_the_topics(
    tmp_path: Path, kafka_cluster: Callable[..., Cluster]
) -> None:
    """It has no coordinator for any group yet, and makes the topic of offsets when it is asked for one."""
    url = f"kafka://{kafka_cluster().bootstrap}"
    needed = [*NEEDED[:3], "dispatcher.progress", *NEEDED[3:]]
    for expected in ("".join(f"created {name}\n" for name in needed), ""):
        made = console.dispatcher("topics", "--create", "--broker", url, cwd=tmp_path)
        assert (made.returncode, made.stderr) == (0, expected)
        assert {row[0] for row in rows(made.stdout)} == set(needed)


def test_topics_of_others_are_shown_only_when_asked_for(tmp_path: Path) -> None:
    console.dispatcher("publish", "ping", "--topic", "others", "--force", cwd=tmp_path)
    assert "others" not in console.dispatcher("topics", "--create", cwd=tmp_path).stdout
    assert "others" in console.dispatcher("topics", "--all", cwd=tmp_path).stdout


@pytest.mark.parametrize(
    ("partition", "expected"),
    [
        (PartitionInfo(0, earliest=10, latest=25, committed=20), 5),
        (PartitionInfo(0, earliest=10, latest=25, committed=25), 0),
        (PartitionInfo(0, earliest=10, latest=25, committed=None), 15),
        (PartitionInfo(0, earliest=10, latest=25, committed=3), 15),  # what was deleted is not waiting
        (PartitionInfo(0, earliest=0, latest=0, committed=7), 0),  # a topic that was made anew
    ],
)
def test_lag_is_what_the_group_has_still_before_it(partition: PartitionInfo, expected: int) -> None:
    assert lag(partition) == expected


def test_a_wrong_setting_exits_2(tmp_path: Path) -> None:
    ended = console.dispatcher("topics", "--set", "topics.prefix=a b", cwd=tmp_path)
    assert ended.returncode == 2
    assert "topics.prefix" in ended.stderr
