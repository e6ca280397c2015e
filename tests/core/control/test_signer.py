"""Signatures that every replica makes and verifies alike."""

from __future__ import annotations

from hypothesis import given, strategies as st

from dispatcher.core.control.signer import TEXT_LENGTH, Signer

OLD, NEW = b"o" * 32, b"n" * 32


def test_the_first_secret_signs_and_all_verify() -> None:
    before, both, after = Signer([OLD]), Signer([NEW, OLD]), Signer([NEW])
    signed = before.sign("session", "a")
    assert both.verifies(signed, "session", "a")
    assert not after.verifies(signed, "session", "a")
    assert after.verifies(both.sign("session", "a"), "session", "a")
    assert not before.verifies(both.sign("session", "a"), "session", "a")


def test_what_is_signed_for_one_purpose_passes_for_no_other() -> None:
    signer = Signer([OLD])
    assert not signer.verifies(signer.sign("session", "a"), "portal", "a")
    assert len(signer.sign("session", "a")) == TEXT_LENGTH


_parts = st.lists(st.text(max_size=4), max_size=3)


@given(_parts, _parts)
def test_no_other_list_of_parts_has_the_same_signature(one: list[str], other: list[str]) -> None:
    signer = Signer([OLD])
    assert signer.verifies(signer.sign("p", *one), "p", *other) == (one == other)


def test_whatever_is_given_as_a_signature_is_only_wrong() -> None:
    signer = Signer([OLD])
    for given_ in ("", "\udcff", "ä" * TEXT_LENGTH, "A" * TEXT_LENGTH):
        assert not signer.verifies(given_, "p")


def test_its_name_tells_installations_apart_and_not_what_they_sign_with() -> None:
    assert Signer([OLD]).name == Signer([OLD, NEW]).name != Signer([NEW]).name
    assert Signer([OLD]).name not in OLD.hex()
