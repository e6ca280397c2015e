from __future__ import annotations

from dataclasses import replace

import pytest

from dispatcher.core.control.keys import Key, hash_of, id_of, is_key, make_secret

SECRET = make_secret("abcd2345", bytes(range(32)))
KEY = Key("abcd2345", "billing team", "tenant", "acme", hash_of(SECRET), 1_700_000_000_000, "operator")


def test_a_key_is_recognized_by_its_id_and_compared_by_its_hash() -> None:
    assert SECRET == "dk_abcd2345_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"
    assert id_of(SECRET) == "abcd2345"
    assert is_key(SECRET, KEY)


@pytest.mark.parametrize(
    "other",
    [
        make_secret("abcd2345", bytes(32)),
        make_secret("abcd2346", bytes(range(32))),
        SECRET + "A",
        "",
        "\u00e9",
    ],
)
def test_any_other_key_is_not_it(other: str) -> None:
    assert not is_key(other, KEY)
    assert not is_key(other, None)


def test_a_key_that_is_not_there_is_nobodys_whatever_is_sent() -> None:
    assert not is_key(SECRET, None)


@pytest.mark.parametrize(
    "sent", ["", "dk_", "dk_abcd2345", SECRET[:-1], SECRET + "=", "DK" + SECRET[2:], SECRET + "\n", "dk_A__"]
)
def test_what_is_no_key_of_ours_has_no_id(sent: str) -> None:
    assert id_of(sent) is None


def test_what_is_kept_comes_back_and_holds_no_secret() -> None:
    document = KEY.to_document()
    assert Key.from_document("abcd2345", document) == KEY
    assert SECRET not in str(document)
    operator = replace(KEY, scope="operator", tenant=None)
    assert Key.from_document("abcd2345", operator.to_document()) == operator


@pytest.mark.parametrize(
    "change", [{"scope": "root"}, {"tenant": None}, {"hash": "xyz"}, {"hash": None}, {"created_ms": None}]
)
def test_what_is_kept_wrongly_is_no_key(change: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        Key.from_document("abcd2345", KEY.to_document() | change)
    with pytest.raises(ValueError, match="not a key"):
        Key.from_document("abcd2345", {})


def test_an_id_is_short_and_plain_and_chance_is_long_enough() -> None:
    for bad in ("short", "with_underscore", "UPPERCASE", "a" * 33):
        with pytest.raises(ValueError, match="8 to 32"):
            make_secret(bad, bytes(32))
        with pytest.raises(ValueError, match="8 to 32"):
            replace(KEY, id=bad)
    with pytest.raises(ValueError, match="32 random bytes"):
        make_secret("abcd2345", bytes(16))


def test_a_key_from_before_there_were_capabilities_has_all_of_them() -> None:
    document = KEY.to_document()
    del document["capabilities"]
    assert Key.from_document("abcd2345", document).capabilities == {
        "publish",
        "read",
        "write",
        "secrets",
        "resend",
    }


def test_a_capability_of_a_later_version_is_left_out() -> None:
    document = KEY.to_document() | {"capabilities": ["read", "fly"]}
    assert Key.from_document("abcd2345", document).capabilities == {"read"}
    assert Key.from_document("abcd2345", document | {"capabilities": ["fly"]}).capabilities == frozenset()
