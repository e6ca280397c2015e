from __future__ import annotations

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from dispatcher.telemetry.metrics import Metrics
from dispatcher.workers.exposition import merged


def text() -> str:
    registry = CollectorRegistry()
    Metrics(registry).consumed["orders"] = 7
    ProcessCollector(registry=registry)
    return generate_latest(registry).decode()


def test_every_sample_says_whose_it_is_and_none_is_lost() -> None:
    one = text()
    families = {family.name: family for family in text_string_to_metric_families(merged({1: one, 2: one}))}
    for family in text_string_to_metric_families(one):
        if family.name == "dispatcher_worker_up":
            continue
        both = families[family.name]
        assert (both.documentation, both.type) == (family.documentation, family.type)
        for worker in ("1", "2"):
            of_it = [sample for sample in both.samples if sample.labels["worker"] == worker]
            assert [
                (sample.name, {k: v for k, v in sample.labels.items() if k != "worker"}) for sample in of_it
            ] == [(sample.name, sample.labels) for sample in family.samples]


def test_the_samples_of_a_family_stand_together_under_one_head() -> None:
    lines = merged({1: text(), 2: text(), 3: None}).splitlines()
    heads = [line.split(" ")[2] for line in lines if line.startswith("# TYPE ")]
    assert len(heads) == len(set(heads))
    assert 'dispatcher_events_consumed_total{worker="2",topic="orders"} 7.0' in lines
    assert 'dispatcher_events_unmatched_total{worker="1"} 0.0' in lines


def test_a_worker_that_says_nothing_is_down() -> None:
    up = [
        line for line in merged({1: text(), 2: None}).splitlines() if line.startswith("dispatcher_worker_up")
    ]
    assert up == ['dispatcher_worker_up{worker="1"} 1', 'dispatcher_worker_up{worker="2"} 0']


def test_braces_in_a_value_are_no_labels() -> None:
    merged_text = merged({1: '# TYPE a gauge\na 1\na{b="{}"} 2\na{} 3\n'})
    assert 'a{worker="1"} 1\na{worker="1",b="{}"} 2\na{worker="1"} 3\n' in merged_text
