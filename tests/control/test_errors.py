"""The hierarchy of errors: complete where it is drawn, and each with its status at the API."""

from __future__ import annotations

import re

import pytest

from dispatcher.api.frame import _problem
from dispatcher.control import errors
from dispatcher.control.errors import ControlError, FileManaged, Invalid, QuotaExceeded, VersionMismatch
from dispatcher.core.flaws import Flaw

DRAWN = dict(re.findall(r"── (\w+) +([0-9]{3}) ", errors.__doc__ or ""))
MADE: dict[str, ControlError] = {
    "FileManaged": FileManaged("sub_a"),
    "VersionMismatch": VersionMismatch(3),
    "QuotaExceeded": QuotaExceeded("subscriptions", "said"),
    "Invalid": Invalid([Flaw(("url",), "is wrong")]),
}


def test_every_error_of_the_module_is_drawn_at_its_top() -> None:
    found = {
        name
        for name, each in vars(errors).items()
        if isinstance(each, type) and issubclass(each, ControlError)
    }
    assert found - {"ControlError"} == DRAWN.keys()


@pytest.mark.parametrize("name", DRAWN)
def test_each_is_answered_with_the_status_that_is_drawn(name: str) -> None:
    error = MADE.get(name) or getattr(errors, name)("said")
    assert str(_problem(error).kind.status) == DRAWN[name]


def test_a_version_mismatch_says_which_version_is_in_force_and_what_to_do() -> None:
    assert "its version is 3" in str(VersionMismatch(3))
    assert "it is gone" in str(VersionMismatch(None))
    assert "read it again and repeat" in str(VersionMismatch(3)).lower()
