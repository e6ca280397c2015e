"""`dispatcher deliveries retry|cancel`, `events deliver` and `subscriptions purge`, against a dispatcher that delivers."""

from __future__ import annotations

import json

from tests.commands.calling import Site


def test_a_delivery_is_sent_again_and_with_wait_the_command_says_what_came_of_it(site: Site) -> None:
    api = site.api
    site.subscribe("sub_retry", "retry.*")
    site.publish("evt_retry", "retry.a")
    id_ = site.delivery("evt_retry", "delivered")
    again = api("deliveries", "retry", id_, "--wait")
    assert again.exit_code == 0, again.output
    assert again.stdout.splitlines()[-1] == "delivered: status 200"
    site.status = 503
    failed = api("deliveries", "retry", id_, "--wait")
    assert failed.exit_code == 1
    assert failed.stdout.splitlines()[-1].startswith("the attempt failed (status 503); the next one is at ")
    cancelled = api("deliveries", "cancel", id_, "--wait")
    assert cancelled.exit_code == 0, cancelled.output
    assert cancelled.stdout.splitlines()[-1] == "dropped: cancelled"
    site.status = 200
    said = json.loads(api("deliveries", "retry", id_, "--wait", "--json").stdout)
    assert (said["command"]["action"], said["delivery"]["delivery"]["state"]) == ("retry", "delivered")
    assert "operator key 1 of the settings" in api("deliveries", "show", id_).stdout
    accepted = api("deliveries", "retry", id_)
    assert accepted.exit_code == 0
    assert f"dispatcher deliveries show {id_}" in accepted.stdout
    assert api.json("deliveries", "retry", id_)["delivery_id"] == id_


def test_an_event_is_delivered_to_a_subscription_that_did_not_want_it(site: Site) -> None:
    api = site.api
    site.subscribe("sub_wants", "deliver.*")
    site.subscribe("sub_other", "else.*")
    site.publish("evt_deliver", "deliver.a")
    site.delivery("evt_deliver", "delivered")
    sent = api("events", "deliver", "evt_deliver", "sub_other", "--wait")
    assert sent.exit_code == 0, sent.output
    assert sent.stdout.splitlines()[-1] == "delivered: status 200"
    source = api.json("events", "show", "evt_deliver")["events"][0]["source"]
    there = f"{source['topic']}-{source['partition']}-{source['offset']}"
    assert api("events", "deliver", "evt_deliver", "sub_other", "--source", there).exit_code == 0
    wrong = api("events", "deliver", "evt_deliver", "sub_other", "--source", "there")
    assert (wrong.exit_code, "TOPIC-PARTITION-OFFSET" in wrong.stderr) == (2, True)


def test_a_subscription_is_purged(site: Site) -> None:
    api = site.api
    site.subscribe("sub_purge", "purge.*")
    purged = api("subscriptions", "purge", "sub_purge")
    assert purged.exit_code == 0, purged.output
    assert "purged sub_purge (int_" in purged.stdout
    # Beside it the server's log stands in the output: it is in this process.
    assert '"action": "purge"' in api("subscriptions", "purge", "sub_purge", "--json").stdout
    assert "there is no subscription" in api("subscriptions", "purge", "sub_none").stderr


def test_what_takes_too_long_ends_the_command_with_where_to_look(site: Site) -> None:
    api = site.api
    site.subscribe("sub_slow", "slow.*")
    site.publish("evt_slow", "slow.a")
    id_ = site.delivery("evt_slow", "delivered")
    over = api("deliveries", "retry", id_, "--wait", "--timeout", "0.000001")
    assert over.exit_code == 1
    assert f"dispatcher deliveries show {id_}" in over.stderr


def test_what_the_api_refuses_is_one_line(site: Site) -> None:
    refused = site.api("deliveries", "retry", f"dlv_{'0' * 24}", "--wait")
    assert (refused.exit_code, refused.stderr) == (1, f"Error: there is no delivery dlv_{'0' * 24}\n")
