from __future__ import annotations

import pytest

from dispatcher.core.flaws import Flaw, FlawedError


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ((), ""),
        (("retry", "jitter"), "retry.jitter"),
        (("event_types", 0), "event_types[0]"),
        ((3, "data", "items", 1, "price"), "[3].data.items[1].price"),
    ],
)
def test_a_flaw_names_its_place_as_the_document_writes_it(path: tuple[str | int, ...], field: str) -> None:
    assert Flaw(path, "is wrong").field == field
    assert str(Flaw(path, "is wrong")) == (f"{field}: is wrong" if field else "is wrong")


def test_the_error_tells_all_of_them() -> None:
    error = FlawedError([Flaw(("url",), "is required"), Flaw((), "is no object")])
    assert str(error) == "url: is required; is no object"
    assert [flaw.field for flaw in error.flaws] == ["url", ""]
