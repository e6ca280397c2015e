from __future__ import annotations

from tests.commands.calling import Api


def test_an_empty_list_is_no_silence(api: Api) -> None:
    for command in ("subscriptions", "event-types", "keys"):
        ended = api(command, "list")
        assert (ended.exit_code, ended.stdout, ended.stderr) == (0, "", "there are none\n")
        assert api.json(command, "list") == []


def test_a_long_reason_leaves_room_for_the_other_columns(api: Api) -> None:
    reason = "not validated: " + "the endpoint said so " * 20
    api.plane.subscriptions.add("sub_1", status="pending", reason=reason)
    listed = api("subscriptions", "list").stdout
    assert "pending (not validated" in listed
    assert reason not in listed
    assert "https://" in listed
    assert "the endpoint said so the endpoint" in api("subscriptions", "show", "sub_1").stdout
