"""`dispatcher topics skip` on the embedded broker. What it does to a damaged log is in tests/e2e/test_unreadable.py."""

from __future__ import annotations

from pathlib import Path

from tests.commands.console import dispatcher


def test_a_record_that_can_be_read_or_is_not_there_is_never_skipped(tmp_path: Path) -> None:
    dispatcher("publish", "ping", "--id", "a", cwd=tmp_path)
    dispatcher("topics", "--create", cwd=tmp_path)
    said = [
        dispatcher("topics", "skip", "events", str(partition), "0", cwd=tmp_path) for partition in range(4)
    ]
    assert all(ended.returncode == 1 and ended.stdout == "" for ended in said)
    why = sorted(ended.stderr.rpartition("events-")[2][2:].strip() for ended in said)
    assert why[0] == "can be read; nothing to skip"
    assert [each.partition(":")[0] for each in why[1:]] == ["is not there"] * 3
    assert all(each.endswith("; nothing to skip") for each in why)


def test_a_topic_that_the_dispatcher_does_not_read_is_refused_with_those_that_it_reads(
    tmp_path: Path,
) -> None:
    ended = dispatcher("topics", "skip", "dispatcher.dead", "0", "0", cwd=tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.startswith(
        "Error: the dispatcher does not read dispatcher.dead; it reads dispatcher.retry."
    )
    assert "dispatcher.subscriptions" in ended.stderr


def test_a_topic_that_is_missing_is_named(tmp_path: Path) -> None:
    ended = dispatcher("topics", "skip", "events", "0", "0", cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (1, "Error: missing: events, dispatcher.subscriptions\n")
