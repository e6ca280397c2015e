"""`dispatcher deliveries`, against a dispatcher whose history has been told what to know."""

from __future__ import annotations

import json
import time

import pytest
from rich.console import Console

from dispatcher.commands import tables
from dispatcher.commands.deliveries import print_deliveries
from tests.commands.calling import Api, HistoryApi, one_line
from tests.history.records import ATTEMPTS, attempt, batch, dead_letter

NOW = int(time.time() * 1000)


@pytest.fixture(scope="module", autouse=True)
def known(history_api: HistoryApi) -> None:
    records = [
        attempt(0, 0, time_ms=NOW - 5000),
        attempt(
            1, 1, "sub_b", decision="retry", time_ms=NOW - 4000, due_ms=NOW + 60_000, response="try\n later"
        ),
        attempt(
            2,
            1,
            "sub_b",
            decision="retry",
            time_ms=NOW - 3000,
            attempt=2,
            failure="timeout",
            v=2,
            due_ms=NOW + 60_000,
        ),
        attempt(3, 2, "sub_a", decision="retry", time_ms=NOW - 2000, tenant="globex"),
        attempt(
            4,
            2,
            "sub_a",
            decision="dead",
            reason="exhausted",
            v=2,
            time_ms=NOW - 1000,
            attempt=2,
            tenant="globex",
        ),
        *(attempt(at, at, "sub_many", time_ms=NOW - at) for at in range(10, 460)),
    ]
    history_api.remember(batch(records, None, 460, partition=ATTEMPTS._replace(topic="seeded")))
    dead = [dead_letter(0, 2, time_ms=NOW - 1000)]
    history_api.remember(batch([], None, 1, partition=ATTEMPTS._replace(topic="seeded-dead"), dead=dead))


def ids(api: HistoryApi, *arguments: str) -> list[int]:
    return [each["source"]["offset"] for each in api.json("deliveries", "list", *arguments)["deliveries"]]


def test_the_filters_are_those_of_the_route(history_api: HistoryApi) -> None:
    some = ("--subscription", "sub_b")
    assert ids(history_api, *some) == [1]
    assert ids(history_api, "--tenant", "globex") == [2]
    assert ids(history_api, "--event", "evt_1") == [1]
    assert ids(history_api, "--state", "failed") == [2, 1]
    assert ids(history_api, "--state", "dead") == [2]
    assert ids(history_api, "--reason", "timeout") == [1]
    assert ids(history_api, *some, "--status", "5xx") == []
    assert ids(history_api, *some, "--event-type", "invoice.*") == [1]
    assert ids(history_api, *some, "--host", "elsewhere.example") == []
    assert ids(history_api, *some, "--since", "1h") == [1]
    assert ids(history_api, *some, "--until", "1h") == []
    assert (
        ids(history_api, *some, "--since", "2001-01-01T00:00:00Z", "--until", "2001-01-02T00:00:00+02:00")
        == []
    )


def test_a_list_goes_over_pages_and_says_when_there_is_more(history_api: HistoryApi) -> None:
    listed = history_api("deliveries", "list", "--subscription", "sub_many", "--limit", "420")
    assert len([line for line in listed.stdout.splitlines() if "dlv_" in line]) == 420
    assert "there are more" in listed.stderr
    everything = history_api.json("deliveries", "list", "--subscription", "sub_many", "--limit", "1000")
    assert len({each["id"] for each in everything["deliveries"]}) == 450
    assert everything["next_cursor"] is None
    assert everything.keys() == {"deliveries", "next_cursor", "as_of", "gaps"}


def test_a_table_says_what_became_of_each(history_api: HistoryApi) -> None:
    listed = history_api("deliveries", "list", "--state", "failed")
    assert listed.exit_code == 0, listed.output
    head, dead, retrying = listed.stdout.splitlines()
    assert head.split()[:3] == ["begun", "id", "state"]
    assert "dead (exhausted)" in dead
    assert "globex" in dead
    assert "retrying" in retrying
    assert "timeout" in retrying
    assert "there are none" in history_api("deliveries", "list", "--tenant", "nobody").stderr


def test_a_delivery_is_shown_with_its_attempts(history_api: HistoryApi) -> None:
    (found,) = history_api.json("deliveries", "list", "--subscription", "sub_b")["deliveries"]
    shown = history_api("deliveries", "show", found["id"])
    assert shown.exit_code == 0, shown.output
    assert "events-0 offset 1" in shown.stdout
    assert "next attempt" in shown.stdout
    first, second = [line for line in shown.stdout.splitlines() if line.startswith(("1 ", "2 "))]
    assert "503" in first
    assert "try later" in first
    assert "timeout" in second
    whole = history_api.json("deliveries", "show", found["id"])
    assert [each["attempt"] for each in whole["attempts"]] == [1, 2]


def test_attempts_of_several_generations_are_told_apart(history_api: HistoryApi) -> None:
    """Each generation counts its attempts anew."""
    again = {"v": 2, "generation": 2, "triggered_by": "operator ops"}
    records = [
        attempt(0, 700, "sub_again", decision="dead", reason="exhausted", v=2, time_ms=NOW - 900),
        attempt(1, 700, "sub_again", time_ms=NOW - 800, **again),
    ]
    history_api.remember(batch(records, None, 2, partition=ATTEMPTS._replace(topic="seed of generations")))
    (found,) = history_api.json("deliveries", "list", "--subscription", "sub_again")["deliveries"]
    shown = history_api("deliveries", "show", found["id"]).stdout
    assert "generation  attempt  time" in shown
    assert [line.split()[:2] for line in shown.splitlines() if line.startswith(("1 ", "2 "))] == [
        ["1", "1"],
        ["2", "1"],
    ]


def test_the_dead_letter_of_a_delivery_is_named(history_api: HistoryApi) -> None:
    (found,) = history_api.json("deliveries", "list", "--state", "dead")["deliveries"]
    assert "partition 0 offset 0 (exhausted)" in history_api("deliveries", "show", found["id"]).stdout


def test_what_is_wrong_is_one_line(history_api: HistoryApi) -> None:
    one_line(history_api("deliveries", "show", "dlv_" + "0" * 24), "there is no delivery")
    one_line(history_api("deliveries", "show", ".."), "can't be a name", code=2)
    one_line(history_api("deliveries", "list", "--status", "9xx"), "status", code=2)
    one_line(history_api("deliveries", "list", "--since", "yesterday"), "RFC 3339", "--since", code=2)
    one_line(history_api("deliveries", "list", "--since", "2026-01-31T12:00:00"), "with its zone", code=2)
    one_line(history_api("deliveries", "list", "--since", "1h", "--until", "2h"), "later than until", code=2)


def test_without_a_history_it_says_how_to_have_one(api: Api) -> None:
    one_line(api("deliveries", "list"), "set history.store to sqlite")
    one_line(api("deliveries", "show", "dlv_" + "0" * 24, "--json"), "set history.store to sqlite")


def test_what_an_endpoint_said_moves_no_cursor(history_api: HistoryApi) -> None:
    said = attempt(500, 500, "sub_red", decision="retry", time_ms=NOW, response="\x1b[31mred")
    history_api.remember(batch([said], None, 501, partition=ATTEMPTS._replace(topic="seeded-red")))
    (found,) = history_api.json("deliveries", "list", "--subscription", "sub_red")["deliveries"]
    shown = history_api("deliveries", "show", found["id"]).stdout
    assert "\x1b" not in shown
    assert "\\x1b[31mred" in shown
    assert json.dumps(history_api.json("deliveries", "show", found["id"]))


def test_on_a_narrow_terminal_the_id_stands_whole_and_nothing_is_cut(
    history_api: HistoryApi, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = history_api.json("deliveries", "list", "--state", "dead")["deliveries"]
    monkeypatch.setattr(tables, "console", lambda: Console(force_terminal=True, no_color=True, width=80))
    print_deliveries(found)
    lines = capsys.readouterr().out.splitlines()
    (row,) = [line for line in lines if found[0]["id"] in line]
    begun = "".join(line[1:6].strip() for line in lines[lines.index(row) :])
    assert begun == found[0]["created_at"]
