"""`dispatcher dead-letters`, against a dispatcher that delivers."""

from __future__ import annotations

import time
from typing import Any

from dispatcher.broker.base import Message
from tests.commands.calling import HistoryApi, Site


def letters(api: HistoryApi, count: int) -> list[dict[str, Any]]:
    deadline = time.monotonic() + 60
    while len(found := api.json("dead-letters", "list")["dead_letters"]) < count:
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    return list(found)


def test_what_was_given_up_is_listed_and_sent_again(site: Site) -> None:
    api = site.api
    assert "there are no dead letters" in api("dead-letters", "list").stderr
    site.status = 410
    site.subscribe("sub_dead", "dead.*")
    site.publish("evt_dead", "dead.a")
    (letter,) = letters(api, 1)
    api.produce(Message("events", b"no JSON"))
    assert [each["retryable"] for each in letters(api, 2)] == [False, True]
    listed = api("dead-letters", "list")
    assert "gone" in listed.stdout
    assert "evt_dead" in listed.stdout
    assert "there are more" in api("dead-letters", "list", "--limit", "1").stderr
    assert api("subscriptions", "enable", "sub_dead").exit_code == 0
    site.status = 200
    again = api("dead-letters", "retry", letter["id"], "--wait")
    assert again.exit_code == 0, again.output
    assert again.stdout.splitlines()[-1] == "delivered: status 200"
    unreadable = next(each for each in letters(api, 2) if not each["retryable"])
    refused = api("dead-letters", "retry", unreadable["id"])
    assert refused.exit_code == 1
    assert "publish the event again" in refused.stderr
