"""Types that requests and answers share: what they take, and that their schemas say the same."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from dispatcher.api import models


@pytest.mark.parametrize(
    ("type_", "right", "wrong"),
    [
        (models.SubscriptionId, ["sub_1", "A-b"], ["", "a b", "a:b", "x" * 65, "sub\n"]),
        (models.TypeName, ["invoice.paid", "Rechnung bezahlt"], ["", "a\nb", "x" * 1025]),
        (models.Pattern, ["*", "a.*", "*.paid"], ["", "a*", "a..b", ".a"]),
        (models.Duration, ["15s", "1h30m", "250ms"], ["", "15", "s", "1x", "-1s"]),
        (models.RateLimit, ["100/s", "0.5/m"], ["", "100", "1/d", "-1/s"]),
    ],
)
def test_the_schema_takes_and_refuses_what_the_validator_does(
    type_: Any, right: list[str], wrong: list[str]
) -> None:
    adapter: TypeAdapter[str] = TypeAdapter(type_)
    schema = adapter.json_schema()

    def fits(value: str) -> bool:
        return schema["minLength"] <= len(value) <= schema["maxLength"] and bool(
            re.search(schema["pattern"].replace("$", r"\Z"), value)
        )

    for value in right:
        assert adapter.validate_python(value) == value
        assert fits(value)
    for value in wrong:
        with pytest.raises(ValidationError):
            adapter.validate_python(value)
        assert not fits(value)


def test_durations_have_units() -> None:
    assert [models.duration_of(value) for value in (15, 90.0, "3s", None)] == ["15s", "1m30s", "3s", None]
