"""`dispatcher issues`, against a whole dispatcher."""

from __future__ import annotations

import time

from dispatcher.history.base import LogPartition
from tests.commands.calling import HistoryApi, Site, one_line
from tests.history.records import attempt, batch

NOW = int(time.time() * 1000)


def test_issues_are_listed_and_marked(site: Site) -> None:
    api: HistoryApi = site.api
    assert "there are none like that" in api("issues", "list").stderr
    site.subscribe("sub_slow", "slow.*")
    records = [
        attempt(
            at, at, "sub_slow", time_ms=NOW + at, decision="dead", reason="exhausted", failure="timeout", v=2
        )
        for at in range(30)
    ]
    api.remember(batch(records, None, 30, partition=LogPartition("seed of issues", "", 0)))
    listed = api("issues", "list", "--state", "open")
    assert listed.exit_code == 0, listed.output
    assert "sub_slow:timeout" in listed.stdout
    assert " 30 " in listed.stdout
    (issue,) = api.json("issues", "list", "--subscription", "sub_slow")["issues"]
    assert (issue["dead"], issue["state"]) == (30, "open")
    found = api.json("deliveries", "list", "--subscription", "sub_slow", "--cause", "timeout")["deliveries"]
    assert len(found) == 30

    said = api("issues", "acknowledge", "sub_slow:timeout")
    assert said.stdout == "sub_slow:timeout is acknowledged: 30 deliveries\n"
    said = api("issues", "ignore", "sub_slow:timeout", "--for", "2h")
    assert said.stdout.startswith("sub_slow:timeout is ignored until 20")
    assert "ignored by key 1 of the settings until" in api("issues", "list").stdout
    assert api.json("issues", "reopen", "sub_slow:timeout")["state"] == "open"
    one_line(api("issues", "acknowledge", "sub_slow:500"), "there is no issue")
    one_line(api("issues", "ignore", "sub_slow:timeout", "--for", "a while"), "--for", code=2)


def test_a_list_without_rows_says_whose_name_is_nobodys(site: Site) -> None:
    site.subscribe("sub_idle", "idle.*")
    for command in (("issues", "list"), ("deliveries", "list"), ("failing",)):
        said = site.api(*command, "--subscription", "sub_idel").stderr
        assert "there is no subscription sub_idel, or no longer: dispatcher subscriptions list\n" in said
        assert "there is no subscription" not in site.api(*command, "--subscription", "sub_idle").stderr
