"""A replay as a job: its states, its checkpoint, and how it is kept."""

from __future__ import annotations

from dataclasses import replace

import orjson
import pytest
from hypothesis import given, strategies as st

from dispatcher.core.replay.job import (
    JobState,
    NotPossible,
    ReplayJob,
    ReplayRange,
    ReplayRequest,
    ReplaySource,
    read_job,
)

REQUEST = ReplayRequest(ReplaySource.EVENTS, 2000, since_ms=1000, subscription="sub_1")
JOB = ReplayJob("rpl_0000000000000", REQUEST, None, 2000, "operator ops")

ranges = st.builds(
    lambda topic, partition, start, read, left: ReplayRange(
        topic, partition, start, start + read, start + read + left
    ),
    st.text(min_size=1, max_size=5),
    st.integers(0, 9),
    *[st.integers(0, 10**6)] * 3,
)
texts = st.text(max_size=5)
requests = st.builds(
    ReplayRequest,
    st.sampled_from(ReplaySource),
    st.integers(0, 2**50),
    st.none() | st.integers(0, 2**50),
    st.none() | texts,
    st.none() | texts,
    *[st.lists(texts, max_size=3).map(tuple)] * 4,
    st.none() | st.floats(0.001, 1e5),
)
jobs = st.builds(
    ReplayJob,
    texts,
    requests,
    st.none() | texts,
    st.integers(0, 2**50),
    texts,
    st.integers(0, 10**6),
    st.sampled_from(JobState),
    st.none() | texts,
    *[st.none() | st.integers(1, 2**50)] * 3,
    st.none() | st.lists(ranges, max_size=3).map(tuple),
    st.none() | st.tuples(st.integers(0, 2**50), texts),
    st.booleans(),
    *[st.integers(0, 10**9)] * 3,
    st.dictionaries(texts, st.integers(1, 99), max_size=3),
    st.none() | st.floats(0.1, 1e6),
    st.none() | texts,
    st.none() | st.integers(1, 2**50),
    st.none() | st.tuples(texts, texts, texts),
)


@given(jobs)
def test_what_is_kept_reads_back_as_it_was(job: ReplayJob) -> None:
    kept = orjson.loads(orjson.dumps(job.document()))
    assert read_job(job.id, kept) == job


@pytest.mark.parametrize("state", [state for state in JobState if state.over])
def test_nothing_leads_out_of_an_end(state: JobState) -> None:
    job = replace(JOB, state=state)
    with pytest.raises(NotPossible):
        job.pause(1)
    with pytest.raises(NotPossible):
        job.resume()
    if state is JobState.CANCELLED:
        assert job.cancel(5) is job
    else:
        with pytest.raises(NotPossible):
            job.cancel(5)


def test_pausing_and_resuming_twice_is_as_once() -> None:
    running = JOB.begin(10, "a")
    paused = running.pause(20)
    assert (paused.state, paused.paused_ms) == (JobState.PAUSED, 20)
    assert paused.pause(30) is paused
    resumed = paused.resume()
    assert (resumed.state, resumed.paused_ms, resumed.started_ms) == (JobState.PLANNED, None, 10)
    assert resumed.resume() is resumed
    assert resumed.begin(99, "b").started_ms == 10


def test_progress_is_carried_over_onto_what_others_have_said_meanwhile() -> None:
    running = JOB.begin(10, "a")
    further = running.advanced(
        ranges=[ReplayRange("events", 0, 0, 5, 9)],
        cursor=None,
        exhausted=False,
        looked=5,
        written=3,
        skipped={"deleted": 1},
    )
    onto = further.carried_over(running.pause(20))
    assert onto.state is JobState.PAUSED
    assert (onto.looked, onto.written, onto.ranges, onto.skipped) == (5, 3, further.ranges, {"deleted": 1})
    again = further.advanced(
        ranges=further.ranges, cursor=None, exhausted=True, looked=1, written=1, skipped={"deleted": 2}
    )
    assert (again.looked, again.written, again.skipped, again.exhausted) == (6, 4, {"deleted": 3}, True)


def test_progress_and_estimate_follow_from_what_is_read_and_sent() -> None:
    assert JOB.fraction is None
    half = replace(
        JOB, ranges=(ReplayRange("e", 0, 10, 20, 30), ReplayRange("e", 1, 0, 0, 0)), written=100, sent=80
    )
    assert half.fraction == 0.5
    assert half.seconds_left() is None
    assert replace(half, per_second=10.0).seconds_left() == 12.0
    assert replace(half, per_second=10.0).pause(5).seconds_left() is None, "until somebody resumes it"
    assert replace(half, ranges=()).fraction == 1.0
    assert replace(half, exhausted=True).fraction == 1.0
    by_time = replace(JOB, cursor=(1750, "x"))
    assert by_time.fraction == 0.25
    assert replace(half, per_second=10.0).done(5).seconds_left() is None
    assert (half.behind, replace(half, sent=200).behind) == (20, 0)


def test_an_end_says_when_and_why_and_nobody_runs_it() -> None:
    failed = JOB.begin(1, "a").fail(7, "no more")
    assert (failed.state, failed.ended_ms, failed.detail, failed.runner) == (
        JobState.FAILED,
        7,
        "no more",
        None,
    )
    assert JOB.cancel(8, "by me").state is JobState.CANCELLED
