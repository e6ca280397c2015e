"""Who may ask, and what a wrong key costs."""

from __future__ import annotations

from typing import Any

import pytest

from dispatcher.control.access import Access, Principal, TooManyWrongKeys, Unauthenticated, counted_as
from dispatcher.control.errors import Invalid, NotFound, Unavailable
from dispatcher.core.control.keys import ALL_CAPABILITIES, OF_NEW_TENANT_KEYS, Capability, Scope
from dispatcher.settings.groups import ApiSettings, HttpSettings, Settings
from tests.api.fakes import MemoryKeys

KEY = "k" * 32
OPERATOR = Principal("settings", "key 1 of the settings", "operator")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def access(*keys: str, host: str = "127.0.0.1", limit: int = 3) -> tuple[Access, MemoryKeys, Clock]:
    settings = Settings.model_validate(
        {
            "http": HttpSettings(host=host),
            "api": ApiSettings.model_validate({"keys": keys, "wrong_keys_per_minute": limit}),
        }
    )
    clock, table = Clock(), MemoryKeys()
    return (
        Access(settings, table, lambda: table.loaded, wall=lambda: 1_760_000_000.0, monotonic=clock),
        table,
        clock,
    )


def test_without_any_key_it_is_open_to_this_machine() -> None:
    found, _, _ = access()
    assert found.is_open()
    assert found.authenticate(None, "127.0.0.1").scope == "operator"
    beyond, _, _ = access(host="0.0.0.0")
    assert not beyond.is_open()


async def test_the_first_operators_key_closes_it_and_a_tenants_does_not() -> None:
    found, _, _ = access()
    await found.create("acme", "tenant", "acme", by=OPERATOR)
    assert found.is_open()
    key, secret = await found.create("ops", "operator", None, by=OPERATOR)
    assert not found.is_open()
    with pytest.raises(Unauthenticated, match="Bearer"):
        found.authenticate(None, "127.0.0.1")
    assert found.authenticate(f"Bearer {secret}", "127.0.0.1") == Principal(key.id, "ops", "operator", None)
    assert (await found.revoke(key.id)).name == "ops"
    assert found.is_open()


async def test_a_key_of_the_api_is_its_tenants_until_it_is_revoked() -> None:
    found, table, _ = access(KEY)
    key, secret = await found.create("acme's back end", "tenant", "acme", by=OPERATOR)
    assert found.authenticate(f"bearer  {secret}", "::1") == Principal(
        key.id, "acme's back end", "tenant", "acme", OF_NEW_TENANT_KEYS
    )
    assert secret not in repr(table.rows[key.id])
    assert (key.created_by, key.created_ms) == ("settings", 1_760_000_000_000)
    assert [each.id for each in found.list()] == [key.id]
    await found.revoke(key.id)
    with pytest.raises(Unauthenticated, match="revoked"):
        found.authenticate(f"Bearer {secret}", "::1")
    with pytest.raises(NotFound):
        await found.revoke(key.id)


def test_every_key_of_the_settings_is_an_operators() -> None:
    found, table, _ = access(KEY, "other-" * 5)
    table.loaded = False
    assert found.authenticate(f"Bearer {KEY}", "a") == OPERATOR
    assert found.authenticate("Bearer " + "other-" * 5, "a").name == "key 2 of the settings"


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        f"Basic {KEY}",
        KEY,
        f"Bearer {KEY}x",
        f"Bearer {KEY[:-1]}",
        "Bearer \udce4\udcff",
    ],
)
def test_anything_else_is_refused(header: str) -> None:
    found, _, _ = access(KEY)
    with pytest.raises(Unauthenticated):
        found.authenticate(header, "a")


async def test_the_right_id_with_the_wrong_secret_is_refused() -> None:
    found, _, _ = access(KEY)
    _, first = await found.create("one", "operator", None, by=OPERATOR)
    _, second = await found.create("two", "operator", None, by=OPERATOR)
    mixed = first[:-43] + second[-43:]
    with pytest.raises(Unauthenticated):
        found.authenticate(f"Bearer {mixed}", "a")


def test_before_the_keys_are_loaded_none_of_them_is_called_wrong() -> None:
    found, table, _ = access(limit=1)
    table.loaded = False
    for _ in range(3):
        with pytest.raises(Unavailable):
            found.authenticate("Bearer dk_0123456789abcdef_" + "A" * 43, "a")
        with pytest.raises(Unavailable):
            found.authenticate(None, "a")
    assert found.confined


def test_a_source_of_wrong_keys_has_to_wait_even_with_a_right_one_and_no_other_has() -> None:
    found, _, clock = access(KEY, limit=3)

    def attempt(key: str, source: str) -> Any:
        return found.authenticate(f"Bearer {key}", source)

    for _ in range(3):
        with pytest.raises(Unauthenticated):
            attempt("wrong", "192.0.2.1")
    for key in ("wrong", KEY):
        with pytest.raises(TooManyWrongKeys) as caught:
            attempt(key, "192.0.2.1")
        assert caught.value.retry_after == pytest.approx(20)
    assert attempt(KEY, "192.0.2.2") == OPERATOR
    clock.now += 19.9
    with pytest.raises(TooManyWrongKeys):
        attempt(KEY, "192.0.2.1")
    clock.now += 0.2
    assert attempt(KEY, "192.0.2.1") == OPERATOR


def test_a_source_of_ipv6_is_its_whole_network() -> None:
    found, _, _ = access(KEY, limit=2)
    for last in range(2):
        with pytest.raises(Unauthenticated):
            found.authenticate("Bearer wrong", f"2001:db8:0:1::{last}")
    with pytest.raises(TooManyWrongKeys):
        found.authenticate("Bearer wrong", "2001:db8:0:1:ffff::9")
    assert found.authenticate(f"Bearer {KEY}", "2001:db8:0:2::1") == OPERATOR


def test_the_sources_that_are_remembered_are_bounded() -> None:
    found, _, _ = access(KEY, limit=1)
    for number in range(10_100):
        with pytest.raises(Unauthenticated):
            found.authenticate("Bearer wrong", f"source-{number}")
    assert found.authenticate(f"Bearer {KEY}", "source-0") == OPERATOR
    with pytest.raises(TooManyWrongKeys):
        found.authenticate(f"Bearer {KEY}", "source-10099")


@pytest.mark.parametrize(
    ("name", "scope", "tenant", "field"),
    [
        (" ", "operator", None, "name"),
        ("a\x07", "operator", None, "name"),
        ("a", "tenant", None, "tenant"),
        ("a", "tenant", "*", "tenant"),
        ("a", "operator", "acme", "tenant"),
    ],
)
async def test_a_key_that_makes_no_sense_is_not_made(name: str, scope: Any, tenant: Any, field: str) -> None:
    found, table, _ = access(KEY)
    with pytest.raises(Invalid) as caught:
        await found.create(name, scope, tenant, by=OPERATOR)
    assert [flaw.field for flaw in caught.value.flaws] == [field]
    assert not table.rows


async def test_a_key_has_some_capabilities() -> None:
    found, _, _ = access()
    wrong: list[tuple[Scope, str | None, list[Capability]]] = [
        ("operator", None, []),
        ("tenant", "acme", []),
    ]
    for scope, tenant, capabilities in wrong:
        with pytest.raises(Invalid, match="capabilities"):
            await found.create("a", scope, tenant, by=OPERATOR, capabilities=capabilities)
    _, secret = await found.create("a", "tenant", "acme", by=OPERATOR, capabilities=["read", "publish"])
    assert found.authenticate(f"Bearer {secret}", "192.0.2.1").capabilities == {"read", "publish"}
    _, secret = await found.create("a", "tenant", "acme", by=OPERATOR)
    assert found.authenticate(f"Bearer {secret}", "192.0.2.1").capabilities == ALL_CAPABILITIES - {"publish"}


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_whoever_has_an_address_has_all_of_its_network(address: str, counted: str) -> None:
    assert counted_as(address) == counted


async def test_an_operators_key_may_everything_unless_it_says_less() -> None:
    found, _, _ = access(KEY)
    full, _ = await found.create("ops", "operator", None, by=OPERATOR)
    eyes, secret = await found.create("eyes", "operator", None, by=OPERATOR, capabilities=["read"])
    assert (full.full, eyes.full) == (True, False)
    principal = found.authenticate(f"Bearer {secret}", "::1")
    assert (principal.scope, set(principal.capabilities)) == ("operator", {"read"})
    with pytest.raises(Invalid, match="must name some of"):
        await found.create("none", "operator", None, by=OPERATOR, capabilities=[])


async def test_a_key_that_only_sees_closes_no_api() -> None:
    found, _, _ = access()
    await found.create("eyes", "operator", None, by=OPERATOR, capabilities=["read"])
    assert found.is_open()
