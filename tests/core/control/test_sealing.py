from __future__ import annotations

from base64 import b64encode
from itertools import count

import pytest
from hypothesis import given, strategies as st

from dispatcher.core.control.sealing import CannotOpen, Sealer, key_id, read_key

OLD, NEW = bytes(range(32)), bytes(range(32, 64))


def sealer(*keys: bytes) -> Sealer:
    numbers = count()
    return Sealer(keys, lambda size: next(numbers).to_bytes(size))


@given(st.text(max_size=200), st.text(max_size=40))
def test_what_was_sealed_opens_again_with_its_context(secret: str, context: str) -> None:
    sealed = sealer(NEW).seal(secret, context)
    assert sealer(NEW).open(sealed, context) == secret
    assert sealer(OLD, NEW).open(sealed, context) == secret


def test_a_sealed_secret_shows_nothing_and_never_looks_the_same() -> None:
    one = sealer(NEW)
    first, second = one.seal("whsec_secret", "sub_1 secrets"), one.seal("whsec_secret", "sub_1 secrets")
    assert first != second
    assert "secret" not in first
    assert first.startswith(f"{key_id(NEW)}.")


def test_the_first_key_seals_and_all_open() -> None:
    by_old = sealer(OLD).seal("s", "c")
    both = sealer(NEW, OLD)
    assert both.open(by_old, "c") == "s"
    assert not both.is_newest(by_old)
    assert both.is_newest(both.seal("s", "c"))


def test_a_missing_key_is_named() -> None:
    with pytest.raises(CannotOpen, match=rf"key '{key_id(OLD)}', which api\.secrets_keys does not have"):
        sealer(NEW).open(sealer(OLD).seal("s", "c"), "c")
    assert not sealer()
    with pytest.raises(ValueError, match="no key"):
        sealer().seal("s", "c")
    assert not sealer().is_newest("")


def test_a_secret_of_another_place_or_a_changed_one_does_not_open() -> None:
    sealed = sealer(NEW).seal("s", "sub_1 secrets")
    with pytest.raises(CannotOpen, match="for sub_2 secrets"):
        sealer(NEW).open(sealed, "sub_2 secrets")
    name, _, text = sealed.partition(".")
    flipped = text[:-3] + ("A" if text[-3] != "A" else "B") + text[-2:]
    for broken in (f"{name}.{flipped}", f"{name}.", f"{name}.AAAA", f"{name}.\u00e9", f"{name}.A"):
        with pytest.raises(CannotOpen):
            sealer(NEW).open(broken, "sub_1 secrets")


def test_a_key_is_base64_of_32_bytes() -> None:
    assert read_key(b64encode(NEW).decode()) == NEW
    assert read_key(b64encode(b"\xff" * 32).decode().replace("/", "_")) == b"\xff" * 32
    for bad in ("", "short", b64encode(bytes(31)).decode(), b64encode(bytes(33)).decode(), "!" * 44):
        with pytest.raises(ValueError, match="openssl rand -base64 32"):
            read_key(bad)
