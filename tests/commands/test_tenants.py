from __future__ import annotations

from tests.commands.calling import Api, one_line


def test_quotas_are_shown_and_set(api: Api) -> None:
    shown = api("tenants", "quotas", "show", "acme").stdout
    assert "the settings" in shown
    assert "this tenant" not in shown
    given = api("tenants", "quotas", "set", "acme", "subscriptions=5000", "max_timeout=2m")
    assert given.exit_code == 0, given.output
    assert given.stdout.count("this tenant") == 2
    found = api.json("tenants", "quotas", "set", "acme", "subscriptions=default", "bytes_per_second=1GiB")
    assert found["own"] == ["bytes_per_second", "max_timeout"]
    assert (found["quotas"]["max_timeout"], found["quotas"]["subscriptions"]) == ("2m", 1000)
    assert api.json("tenants", "quotas", "show", "acme") == found


def test_a_mistake_is_one_line(api: Api) -> None:
    for changes, said in (
        (("subscription=5",), "did you mean subscriptions"),
        (("zzz=5",), "there are subscriptions, "),
        (("max_timeout=2",), "max_timeout: has no unit: write 2s if that is meant; it must be a duration"),
        (("subscriptions",), "subscriptions=VALUE"),
        (("subscriptions=5", "subscriptions=6"), "twice"),
        (("subscriptions=many",), "subscriptions"),
        (("max_timeout=1h",), "max_timeout"),
    ):
        one_line(api("tenants", "quotas", "set", "acme", *changes), said, code=2)
