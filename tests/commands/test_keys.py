from __future__ import annotations

from structlog.testing import capture_logs

from tests.commands.calling import Api, one_line


def test_keys_are_made_listed_and_revoked(api: Api) -> None:
    made = api("keys", "create", "acme's back end", "--tenant", "acme")
    secret = made.stdout.strip()
    assert secret.startswith("dk_")
    assert "shown in full only now" in made.stderr
    listed = api("keys", "list").stdout
    assert "acme's back end" in listed
    assert secret not in listed
    assert api("subscriptions", "list", DISPATCHER_API_KEY=f"{secret}\n").exit_code == 0
    one_line(api("keys", "list", DISPATCHER_API_KEY=secret), "operator's key")
    [key] = api.json("keys", "list")
    assert api("keys", "revoke", key["id"]).stdout == f"{key['id']} is revoked\n"
    one_line(api("subscriptions", "list", DISPATCHER_API_KEY=secret), "not valid", "DISPATCHER_API_KEY")
    one_line(api("keys", "create", "a"), "--operator, or --tenant", code=2)
    one_line(api("keys", "create", "a", "--operator", "--tenant", "a"), "not both", code=2)


def test_whoever_closes_the_api_is_told_so() -> None:
    api = Api()
    with capture_logs():
        api.start()
        eyes = api("keys", "create", "eyes", "--operator", "--may", "read", DISPATCHER_API_KEY=None)
        assert "the API stays open" in eyes.stderr
        assert api("keys", "list", DISPATCHER_API_KEY=None).exit_code == 0
        made = api("keys", "create", "ops", "--operator", DISPATCHER_API_KEY=None)
        assert "the API wants a key from now on: export DISPATCHER_API_KEY" in made.stderr
        one_line(api("keys", "list", DISPATCHER_API_KEY=None), "key")
        again = api("keys", "create", "more", "--operator", DISPATCHER_API_KEY=made.stdout.strip())
        assert "from now on" not in again.stderr
        api.stop()


def test_a_key_is_made_for_what_it_may(api: Api) -> None:
    made = api("keys", "create", "shop", "--tenant", "acme", "--may", "publish", "--may", "read")
    assert made.exit_code == 0, made.output
    [key] = api.json("keys", "list")
    assert key["capabilities"] == ["publish", "read"]
    assert "publish" in api("keys", "list").stdout
    secret = made.stdout.strip()
    one_line(api("subscriptions", "delete", "sub_a", "--yes", DISPATCHER_API_KEY=secret), "capability write")
    eyes = api("keys", "create", "eyes", "--operator", "--may", "read")
    assert eyes.exit_code == 0, eyes.output
    assert "everything" not in api("keys", "list").stdout
    seen = {"DISPATCHER_API_KEY": eyes.stdout.strip()}
    assert api("keys", "list", **seen).exit_code == 0
    one_line(api("subscriptions", "delete", "sub_a", "--yes", **seen), "capability write")
