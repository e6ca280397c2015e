"""Sessions of the console: cookies that end with their key, and people whom a proxy names."""

from __future__ import annotations

from typing import Any

import pytest

from dispatcher.control.access import Access, Principal, TooManyWrongKeys, Unauthenticated
from dispatcher.control.sessions import LIFETIME, Sessions, make_signer
from dispatcher.core.control.keys import ALL_CAPABILITIES
from dispatcher.settings.groups import Settings
from tests.api.fakes import MemoryKeys

KEY, OTHER = "k" * 32, "o" * 32
OPERATOR = Principal("settings", "key 1 of the settings", "operator")


class Installation:
    """A replica."""

    def __init__(self, *keys: str, table: MemoryKeys | None = None, **console: Any) -> None:
        settings = Settings.model_validate(
            {
                "api": {"keys": keys, "wrong_keys_per_minute": 3},
                "http": {"trusted_proxies": ["10.0.0.1"]},
                "console": console,
            }
        )
        self.now = 1_760_000_000.0
        self.table = table or MemoryKeys()
        self.access = Access(settings, self.table, lambda: self.table.loaded)
        self.sessions = Sessions(settings, self.access, make_signer(settings), wall=lambda: self.now)


async def test_every_replica_takes_a_session_until_its_time_is_over() -> None:
    one = Installation(KEY)
    key, secret = await one.access.create("ops", "operator", None, by=OPERATOR)
    other = Installation(KEY, table=one.table)
    for sent, id_ in ((KEY, "settings"), (secret, key.id)):
        opened = one.sessions.open(sent, "192.0.2.1")
        found = other.sessions.read(opened.cookie)
        assert found == opened.admitted
        assert found is not None
        assert (found.principal.id, found.by) == (id_, "cookie")
        assert sent not in opened.cookie
    last = one.sessions.open(KEY, "192.0.2.1").cookie
    other.now += LIFETIME
    assert other.sessions.read(last) is None


async def test_a_session_ends_with_its_key() -> None:
    one = Installation(KEY)
    key, secret = await one.access.create("ops", "operator", None, by=OPERATOR)
    of_key, of_settings = one.sessions.open(secret, "").cookie, one.sessions.open(KEY, "").cookie
    await one.access.revoke(key.id)
    assert one.sessions.read(of_key) is None
    assert one.sessions.read(of_settings) is not None
    assert Installation(OTHER).sessions.read(of_settings) is None
    # The key is gone, and the secret that has signed is there still.
    both = Installation(KEY, OTHER)
    assert Installation(OTHER, KEY).sessions.read(both.sessions.open(OTHER, "").cookie) is not None
    assert Installation(KEY).sessions.read(both.sessions.open(OTHER, "").cookie) is None


async def test_a_key_of_the_same_id_does_not_have_the_old_ones_sessions() -> None:
    one = Installation(KEY)
    key, secret = await one.access.create("ops", "operator", None, by=OPERATOR)
    cookie = one.sessions.open(secret, "").cookie
    await one.access.create("ops", "operator", None, by=OPERATOR)
    [other] = [name for name in one.table.names() if name != key.id]
    one.table.rows[key.id] = one.table.rows[other]
    assert one.sessions.read(cookie) is None


def test_nothing_of_a_cookie_can_be_changed() -> None:
    one = Installation(KEY)
    cookie = one.sessions.open(KEY, "").cookie
    mark, expires, nonce, signature = cookie.split(".")

    def other(text: str) -> str:
        return ("B" if text[0] == "A" else "A") + text[1:]

    for wrong in (
        f"{mark}.{int(expires) + 1}.{nonce}.{signature}",
        f"{mark}.{expires}.{other(nonce)}.{signature}",
        f"{mark}.{expires}.{nonce}.{other(signature)}",
        "",
        "x" * 5000,
        cookie + ".",
        f"{mark}.{'9' * 5000}.{nonce}.{signature}",
    ):
        assert one.sessions.read(wrong) is None
    assert one.sessions.read(cookie) is not None


def test_without_any_configured_secret_a_session_is_of_its_process() -> None:
    one, other = Installation(), Installation()
    assert one.sessions.name != other.sessions.name


def test_a_wrong_key_opens_nothing_and_is_counted() -> None:
    one = Installation(KEY)
    for _ in range(3):
        with pytest.raises(Unauthenticated):
            one.sessions.open("wrong" * 8, "192.0.2.1")
    with pytest.raises(TooManyWrongKeys):
        one.sessions.open(KEY, "192.0.2.1")
    assert one.sessions.open(KEY, "192.0.2.2")


def test_two_sessions_of_one_key_have_values_of_their_own() -> None:
    one = Installation(KEY)
    first, second = one.sessions.open(KEY, ""), one.sessions.open(KEY, "")
    assert first.cookie != second.cookie
    assert first.admitted.csrf != second.admitted.csrf


def test_a_person_whom_the_proxy_names_sees_and_changes_only_if_the_settings_say_so() -> None:
    one = Installation(KEY, trusted_header="X-Forwarded-User", trusted_operators=["ada"])
    ada, bob = one.sessions.person("ada"), one.sessions.person("bob")
    assert ada is not None
    assert bob is not None
    assert (ada.principal.id, ada.principal.scope, ada.by) == ("proxy:ada", "operator", "proxy")
    assert ada.principal.capabilities == ALL_CAPABILITIES
    assert bob.principal.capabilities == {"read"}
    assert ada.csrf != bob.csrf
    everybody = Installation(KEY, trusted_header="X-Forwarded-User", trusted_operators=["*"])
    carl = everybody.sessions.person("carl")
    assert carl is not None
    assert carl.principal.capabilities == ALL_CAPABILITIES
    for wrong in ("", "a" * 257, "a\x00b"):
        assert one.sessions.person(wrong) is None


def test_with_a_proxy_that_says_who_asks_nobody_is_let_in_without_a_name() -> None:
    one = Installation(trusted_header="X-Forwarded-User")
    assert not one.access.is_open()
    assert Installation().access.is_open()
