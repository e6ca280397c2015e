"""What is said of an answer from the history."""

from __future__ import annotations

import time
from typing import Any

import click
import pytest

from dispatcher.commands.history_pages import a_time, listed, tell_what_is_missing
from dispatcher.core.text.times import rfc3339

GAP = {
    "topic": "events",
    "partition": 3,
    "since": None,
    "until": "2026-01-31T12:00:00.000Z",
    "records": 40,
    "reason": "before",
}


class Paged:
    """An API with these pages."""

    def __init__(self, *pages: list[int]) -> None:
        self.pages = list(pages)
        self.asked: list[dict[str, object]] = []

    def get(self, path: str, **query: object) -> Any:
        self.asked.append(query)
        number = len(self.asked)
        cursor = str(number) if number < len(self.pages) else None
        return {"found": self.pages[number - 1], "next_cursor": cursor, "as_of": f"page {number}", "gaps": []}


def test_an_empty_page_is_not_the_end_and_the_answer_is_as_of_the_first() -> None:
    api: Any = Paged([1], [], [2, 3])
    assert listed(api, "/", "found", 10, {"tenant": "acme"}) == {
        "found": [1, 2, 3],
        "next_cursor": None,
        "as_of": "page 1",
        "gaps": [],
    }
    assert [query["cursor"] for query in api.asked] == [None, "1", "2"]
    assert {query["tenant"] for query in api.asked} == {"acme"}


def test_no_more_pages_are_asked_for_than_are_shown() -> None:
    api: Any = Paged([1, 2], [3], [4])
    assert listed(api, "/", "found", 3, {})["next_cursor"] == "2"
    assert [query["limit"] for query in api.asked] == [3, 1]


@pytest.mark.parametrize(
    ("as_of", "said"),
    [
        (None, "has read nothing yet"),
        ("2026-01-31T12:00:00.000Z", "as of 2026-01-31T12:00:00.000Z: the history is behind"),
        (rfc3339(time.time() * 1000 + 3600_000), ""),
    ],
)
def test_a_history_that_is_behind_is_said(capsys: pytest.CaptureFixture[str], as_of: str, said: str) -> None:
    tell_what_is_missing({"as_of": as_of, "gaps": []})
    assert said in capsys.readouterr().err
    if not said:
        tell_what_is_missing({"as_of": as_of, "gaps": []})
        assert capsys.readouterr().err == ""


def test_gaps_are_named_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    tell_what_is_missing({"as_of": rfc3339(time.time() * 1000 + 3600_000), "gaps": [GAP]})
    assert capsys.readouterr() == (
        "",
        "the history has a gap from the beginning to 2026-01-31T12:00:00.000Z: up to 40 records of events-3 (before)\n",
    )


def test_a_duration_is_that_long_ago() -> None:
    context: Any = None
    before = rfc3339((time.time() - 3600) * 1000)
    found = a_time(context, context, "1h")
    assert found is not None
    assert before is not None
    assert before <= found <= str(rfc3339((time.time() - 3600) * 1000))
    assert a_time(context, context, "2026-01-31T12:00:00Z") == "2026-01-31T12:00:00Z"
    assert a_time(context, context, None) is None
    with pytest.raises(click.BadParameter):
        a_time(context, context, "2026-01-31")


def test_a_time_that_no_calendar_has_is_none() -> None:
    assert rfc3339(2**53) is None
    assert rfc3339(-1) is None
    assert rfc3339(0) == "1970-01-01T00:00:00.000Z"
