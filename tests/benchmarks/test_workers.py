"""The arithmetic of the workers' benchmark."""

from pathlib import Path

import pytest

from benchmarks import workers
from benchmarks.end_to_end import Metrics
from benchmarks.harness import Section
from benchmarks.shares import CoreShare
from benchmarks.workers import Seen


def test_each_worker_is_known_by_its_number_and_one_process_alone_has_none() -> None:
    both = Metrics(
        'dispatcher_deliveries_total{worker="1",outcome="delivered"} 5.0\n'
        'dispatcher_deliveries_total{worker="1",outcome="dead"} 7.0\n'
        'dispatcher_deliveries_total{worker="2",outcome="delivered"} 3.0\n'
    )
    assert workers.delivered(both, 2) == [5, 3]
    assert workers.delivered(Metrics('dispatcher_deliveries_total{outcome="delivered"} 4.0\n'), 1) == [4]
    assert workers.delivered(Metrics(""), 2) == [0, 0]


@pytest.mark.parametrize(
    ("two", "said"),
    [
        (Seen(190.0, 11e-6, 0.9), ["1.90", ">= 1.80 ✓", "1.10", "<= 1.10 ✓", "90% of the periods at least"]),
        (Seen(179.0, 12e-6, 0.9), [">= 1.80 ✗ missed", "<= 1.10 ✗ missed"]),
    ],
)
def test_what_was_wanted_and_missed_is_said(two: Seen, said: list[str]) -> None:
    section = workers._told(Section("Workers", ""), {1: [Seen(100.0, 10e-6, 0.95)], 2: [two]}, 1000, 0)
    text = "\n".join(part if isinstance(part, str) else part.markdown() for part in section.parts)
    assert [each for each in said if each not in text] == []
    assert "disturbed" not in text


def test_runs_that_others_disturbed_are_counted() -> None:
    seen = {number: [Seen(100.0 * number, 10e-6, 0.95)] for number in (1, 2)}
    assert "disturbed 1 of 2 runs" in str(workers._told(Section("Workers", ""), seen, 1000, 1).parts)


def test_a_share_says_how_often_it_held_somebody_back(tmp_path: Path) -> None:
    (tmp_path / "cpu.stat").write_text("nr_periods 200\nnr_throttled 150\nthrottled_time 12345\n")
    share = CoreShare(tmp_path)
    assert share.throttled() == 0.75
    share.admit(7)
    assert (tmp_path / "cgroup.procs").read_text() == "7"
    assert str(tmp_path) in " ".join(share.prefix)
