"""`dispatcher replays`, against a dispatcher whose history has been told what to know."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from tests.commands.calling import Api, HistoryApi, one_line
from tests.history.records import ATTEMPTS, attempt, batch

NOW = int(time.time() * 1000)


@pytest.fixture(scope="module", autouse=True)
def known(history_api: HistoryApi) -> None:
    records = [
        attempt(number, number, "sub_gone", decision="dead", reason="exhausted", v=2, time_ms=NOW - 5000)
        for number in range(3)
    ]
    history_api.remember(batch(records, None, 3, partition=ATTEMPTS._replace(topic="seeded")))


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The server shares the process, and so the output."""
    with capture_logs():
        yield


def test_a_plan_says_what_would_be_sent(history_api: HistoryApi) -> None:
    ended = history_api("replays", "plan", "dead-letters", "--rate", "100/s", "--since", "2h")
    assert ended.exit_code == 0, ended.output
    assert "deliveries" in ended.stdout
    plan = history_api.json("replays", "plan", "deliveries", "--state", "dead", "--reason", "exhausted")[
        "plan"
    ]
    # Their subscription is gone by now.
    assert (plan["records"], plan["deliveries"], plan["exact"]) == (3, 0, True)


def test_a_replay_is_begun_waited_for_listed_and_shown(history_api: HistoryApi) -> None:
    ended = history_api("replays", "start", "deliveries", "--state", "dead", "--wait")
    assert ended.exit_code == 0, ended.output
    assert "done" in ended.stdout
    assert "3 deleted" in ended.stdout
    (listed,) = history_api.json("replays", "list", "--state", "done")["replays"]
    assert listed["progress"]["skipped"] == {"deleted": 3}
    table = history_api("replays", "list").stdout
    assert listed["id"] in table
    assert "0 of 0 sent (100% read)" in table
    shown = history_api("replays", "show", listed["id"], "--follow")
    assert shown.exit_code == 0
    assert "deliveries" in shown.stdout
    assert history_api.json("replays", "show", listed["id"])["replay"]["id"] == listed["id"]
    one_line(history_api("replays", "pause", listed["id"]), "is done")
    assert "there are none" in history_api("replays", "list", "--state", "failed").stderr


def test_one_that_is_paused_goes_on_and_ends_on_command(history_api: HistoryApi) -> None:
    id_ = history_api.replay(None)
    assert "paused" in history_api("replays", "pause", id_).stdout
    assert history_api.json("replays", "resume", id_)["replay"]["state"] == "planned"
    id_ = history_api.replay(None)
    ended = history_api("replays", "cancel", id_)
    assert "cancelled by operator" in ended.stdout
    waited = history_api("replays", "show", id_, "--wait")
    assert waited.exit_code == 1
    assert "the replay is cancelled" in waited.stderr


def test_what_is_wrong_is_one_line(history_api: HistoryApi, api: Api) -> None:
    one_line(history_api("replays", "start", "events"), "since", code=2)
    one_line(history_api("replays", "start", "events", "--since", "yesterday"), "RFC 3339", code=2)
    one_line(history_api("replays", "start", "dead-letters", "--state", "dead"), "deliveries only", code=2)
    one_line(history_api("replays", "show", "rpl_000000000000"), "there is no replay")
    one_line(api("replays", "show", "rpl_ffffffffffff"), "there is no replay")
