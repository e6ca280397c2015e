"""Plain integers in, Prometheus families out."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from dispatcher.core.attempt.outcome import DECISIONS
from dispatcher.telemetry.metrics import _COUNTERS, _VALUES, Histogram, Metrics

# Names that dashboards and alerts stand on.
NAMED = {
    "events_consumed_total", "events_unmatched_total", "events_invalid_total", "deliveries_total", "decisions_total",
    "attempts_total", "attempt_duration_seconds", "delivery_latency_seconds", "deliveries_in_flight",
    "deliveries_queued", "deliveries_held", "deliveries_parked_total", "retries_due_total", "retry_lateness_seconds",
    "dead_letters_total", "lanes", "connections", "connections_opened_total", "partition_lag",
    "partition_held_seconds", "commits_total", "commits_ahead_of_log_total", "rebalances_total", "subscriptions",
    "registry_reloads_total", "event_loop_lag_seconds", "build_info",
}  # fmt: skip


def scrape(metrics: Metrics) -> str:
    return generate_latest(metrics.registry).decode()


def test_every_name_is_there_with_its_prose_before_anything_happened() -> None:
    families = {family.name: family for family in text_string_to_metric_families(scrape(Metrics()))}
    for name in NAMED:
        family = families[f"dispatcher_{name.removesuffix('_total')}"]
        assert family.documentation


def test_what_was_counted_is_shown() -> None:
    metrics = Metrics()
    metrics.delivered = 7
    metrics.consumed["events"] += 3
    metrics.deliveries["dropped_paused"] += 2
    metrics.attempts["timeout", "none"] += 4
    metrics.reads("connections", lambda: {("idle",): 5, ("busy",): 6})
    metrics.reads("lanes", lambda: 8)
    text = scrape(metrics)
    for line in (
        'dispatcher_deliveries_total{outcome="delivered"} 7.0',
        'dispatcher_deliveries_total{outcome="dropped_paused"} 2.0',
        'dispatcher_attempts_total{code_class="2xx",outcome="delivered"} 7.0',
        'dispatcher_attempts_total{code_class="none",outcome="timeout"} 4.0',
        'dispatcher_events_consumed_total{topic="events"} 3.0',
        'dispatcher_connections{state="idle"} 5.0',
        "dispatcher_lanes 8.0",
    ):
        assert line in text.splitlines()


def test_each_decision_is_counted_by_the_words_of_the_attempt_log_beside_the_old_names() -> None:
    metrics = Metrics()
    metrics.delivered = 7
    metrics.retried = 6
    metrics.left_to_another = 5
    metrics.parked["breaker"] += 4
    metrics.dead_letters["exhausted"] += 3
    metrics.dead_letters["invalid"] += 9  # a record that is no event is no delivery
    metrics.deliveries["dead_lettered"] += 3
    metrics.deliveries["dropped_deleted"] += 2
    counted = {
        line
        for line in scrape(metrics).splitlines()
        if line.startswith("dispatcher_decisions_total") and not line.endswith(" 0.0")
    }
    assert counted == {
        'dispatcher_decisions_total{decision="delivered",reason=""} 7.0',
        'dispatcher_decisions_total{decision="retry",reason=""} 6.0',
        'dispatcher_decisions_total{decision="left_to_another",reason=""} 5.0',
        'dispatcher_decisions_total{decision="parked",reason="breaker"} 4.0',
        'dispatcher_decisions_total{decision="dead",reason="exhausted"} 3.0',
        'dispatcher_decisions_total{decision="dropped",reason="deleted"} 2.0',
    }
    assert {labels[0] for labels in _VALUES["decisions_total"]} == set(DECISIONS)
    assert metrics.unexpected() == {}


def test_a_histogram_is_cumulative_and_its_bounds_belong_to_their_bucket() -> None:
    histogram = Histogram((0.1, 1.0))
    for value in (0.05, 0.1, 0.5, 1.0, 2.0):
        histogram.observe(value)
    assert list(histogram.buckets()) == [("0.1", 2), ("1.0", 4), ("+Inf", 5)]
    assert histogram.sum == pytest.approx(3.65)


@given(st.lists(st.one_of(st.floats(-1, 4), st.sampled_from([0.1, 1.0, 2.5, float("inf")]))))
def test_a_histogram_counts_each_value_in_its_bucket_whatever_came_before(values: list[float]) -> None:
    bounds = (0.1, 1.0, 2.5)
    histogram = Histogram(bounds)
    for value in values:
        histogram.observe(value)
    assert [count for _, count in histogram.buckets()] == [
        sum(value <= bound for value in values) for bound in (*bounds, float("inf"))
    ]


def test_a_reader_for_a_metric_that_does_not_exist_is_a_mistake() -> None:
    with pytest.raises(KeyError, match="no such metric: nonsense"):
        Metrics().reads("nonsense", lambda: 1)


@pytest.mark.parametrize("name", [name for name, (labels, _) in _COUNTERS.items() if labels])
def test_every_labelled_counter_says_its_values_before_anything_happened(name: str) -> None:
    metrics = Metrics()
    by_settings = {"events_consumed_total", "offsets_skipped_total", "retries_due_total"}
    if name in by_settings:
        metrics.expect(name, ["one", "two"])
    samples = [line for line in scrape(metrics).splitlines() if line.startswith(f"dispatcher_{name}{{")]
    assert len(samples) >= 2
    assert all(line.endswith(" 0.0") for line in samples)


def test_a_value_that_did_not_begin_with_0_is_named() -> None:
    metrics = Metrics()
    metrics.commits["ok"] += 1
    metrics.attempts["timeout", "none"] += 1
    assert metrics.unexpected() == {}
    metrics.commits["perhaps"] += 1
    assert metrics.unexpected() == {"commits_total": {("perhaps",)}}
