"""Issues: which state one is in, and what is kept of a mark."""

from __future__ import annotations

import pytest

from dispatcher.core.control.issues import IssueMark, IssueState, issue_id, read_issue_id, state_of

ACKNOWLEDGED = IssueMark("acknowledged", 100, None, "acme", "ops", "operator")
IGNORED = IssueMark("ignored", 100, 500, None, "ops", "operator")


@pytest.mark.parametrize(
    ("last", "pending", "success", "mark", "now", "state"),
    [
        (90, 0, None, None, 200, IssueState.OPEN),
        (90, 0, 80, None, 200, IssueState.OPEN),
        # A success in the same moment is no later one.
        (90, 0, 90, None, 200, IssueState.OPEN),
        (90, 0, 91, None, 200, IssueState.RESOLVED),
        # What is set aside waits, whatever else arrives.
        (90, 1, 91, None, 200, IssueState.OPEN),
        (90, 0, None, ACKNOWLEDGED, 200, IssueState.ACKNOWLEDGED),
        (150, 0, None, ACKNOWLEDGED, 200, IssueState.ACKNOWLEDGED),
        (150, 0, 99, ACKNOWLEDGED, 200, IssueState.ACKNOWLEDGED),
        (150, 0, 160, ACKNOWLEDGED, 200, IssueState.RESOLVED),
        # It has been well since somebody knew of it: what fails now is news.
        (170, 0, 160, ACKNOWLEDGED, 200, IssueState.OPEN),
        (170, 0, 160, IGNORED, 200, IssueState.IGNORED),
        (150, 0, 160, IGNORED, 200, IssueState.RESOLVED),
        (170, 0, None, IGNORED, 499, IssueState.IGNORED),
        (170, 0, None, IGNORED, 500, IssueState.OPEN),
    ],
)
def test_its_state_follows_from_the_last_failure_the_last_success_and_the_mark(
    last: int, pending: int, success: int | None, mark: IssueMark | None, now: int, state: IssueState
) -> None:
    assert state_of(last, pending, success, mark, now) is state


def test_an_acknowledgement_ends_with_the_rows_that_it_was_about_and_an_ignoring_with_its_time() -> None:
    assert [ACKNOWLEDGED.ended(now, 1000) for now in (1099, 1100)] == [False, True]
    assert [IGNORED.ended(now, 10) for now in (499, 500)] == [False, True]


@pytest.mark.parametrize("mark", [ACKNOWLEDGED, IGNORED])
def test_a_mark_is_read_as_it_was_written(mark: IssueMark) -> None:
    assert IssueMark.from_document("sub_a:503", mark.to_document()) == mark


def test_what_is_no_mark_is_refused() -> None:
    for document in ({}, {**IGNORED.to_document(), "at_ms": "soon"}):
        with pytest.raises((KeyError, ValueError)):
            IssueMark.from_document("sub_a:503", document)


def test_an_id_names_subscription_and_cause() -> None:
    assert read_issue_id(issue_id("sub_a", "503")) == ("sub_a", "503")
    assert read_issue_id("sub_a:a word: of tomorrow") == ("sub_a", "a word: of tomorrow")
    for text in ("", "sub_a", "sub_a:", ":503", "sub_a:" + "x" * 65):
        assert read_issue_id(text) is None
