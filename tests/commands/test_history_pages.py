"""What is said of an answer from the history."""

from __future__ import annotations

import time
from typing import Any

import click
import pytest

from dispatcher.commands.history_pages import a_time, follow, listed, tell_what_is_missing
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
    ids=["never", "behind", "current"],
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


class Growing:
    """An API whose list grows with each look; after the last one somebody interrupts."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, *looks: list[dict[str, Any]], as_of: list[float]
    ) -> None:
        self.looks = looks
        self.as_of = as_of
        self.asked: list[dict[str, Any]] = []
        self.slept = 0
        monkeypatch.setattr("dispatcher.commands.history_pages.time.sleep", self.sleep)

    def sleep(self, _seconds: float) -> None:
        self.slept += 1
        if self.slept == len(self.looks):
            raise KeyboardInterrupt

    def get(self, path: str, **query: Any) -> Any:
        self.asked.append(query)
        as_of = rfc3339(self.as_of[self.slept] * 1000)
        return {"found": self.looks[self.slept], "next_cursor": None, "as_of": as_of, "gaps": []}


def followed(api: Any, **filters: Any) -> None:
    follow(
        api,
        "/",
        "found",
        filters,
        lambda each: (each["id"], each["state"]),
        lambda each: f"{each['id']} {each['state']}",
    )


def test_what_comes_is_printed_once_the_oldest_first_and_again_when_its_state_changes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = time.time()

    def each(id_: int, state: str = "retrying") -> dict[str, Any]:
        return {"id": id_, "state": state}

    api = Growing(
        monkeypatch,
        [each(2), each(1)],
        [each(3), each(2, "delivered"), each(1)],
        [each(3), each(2, "delivered"), each(1)],
        as_of=[now, now + 1, now + 2],
    )
    followed(api, tenant="acme")
    captured = capsys.readouterr()
    assert captured.out.splitlines() == ["1 retrying", "2 retrying", "2 delivered", "3 retrying"]
    assert captured.err == ""
    assert {query["tenant"] for query in api.asked} == {"acme"}
    assert len({query["since"] for query in api.asked}) == 1


def test_what_is_long_known_is_not_asked_for_again_and_a_history_that_is_behind_is_said_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = time.time()
    api = Growing(monkeypatch, [], [], [], as_of=[now - 4000, now - 3000, now])
    since = rfc3339((now - 7200) * 1000)
    followed(api, since=since)
    assert [query["since"] for query in api.asked] == [
        since,
        rfc3339((now - 4300) * 1000),
        rfc3339((now - 3300) * 1000),
    ]
    assert capsys.readouterr().err.count("the history is behind") == 1
