"""Every metric, defined once, with its prose.

The hot path only adds to plain integers (an addition to a slot: 0.03 us; `Counter.inc`: 1.2 us;
`Histogram.observe`: 2.4 us). One collector turns them into Prometheus families when somebody
scrapes. Values that something else already knows (queue lengths, connections, lag) are not
counted a second time: their owner's reader is called at scrape time (`Metrics.reads`).

Labels are bounded: never a URL, an id, a tenant or a free text.
"""

from __future__ import annotations

import platform
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from dispatcher.__about__ import __version__
from dispatcher.core.attempt.outcome import DEAD, DELIVERED, DROPPED, LEFT_TO_ANOTHER, PARKED, RETRY
from dispatcher.core.commit.parked import REASONS
from dispatcher.core.control.quotas import QUOTAS
from dispatcher.core.request.results import Reason

Labels = tuple[str, ...]
Reading = float | Mapping[Labels, float]
Read = Callable[[], Reading]

ATTEMPT_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 30, 60)
LATENCY_BUCKETS: Final = (
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1,
    2.5,
    5,
    10,
    30,
    60,
    300,
    1800,
    7200,
    86400,
)
LAG_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)
QUERY_BUCKETS: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
LATENESS_BUCKETS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30)


class Histogram:
    """Counts per bucket, in plain integers (0.1 us an observation in the bucket of the last one, else 0.3)."""

    __slots__ = ("_above", "_at", "_upto", "bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0
        self._at = 0  # the last one's bucket: most are where the last one was
        self._above = float("-inf")  # and its bounds
        self._upto = bounds[0]

    def observe(self, value: float) -> None:
        """Count one value, in the unit of the bounds."""
        if not self._above < value <= self._upto:
            bounds = self.bounds
            self._at = at = bisect_left(bounds, value)
            self._above = bounds[at - 1] if at else float("-inf")
            self._upto = bounds[at] if at < len(bounds) else float("inf")
        self.counts[self._at] += 1
        self.sum += value

    def buckets(self) -> Iterator[tuple[str, float]]:
        """Cumulative, as Prometheus wants them."""
        total = 0
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            total += count
            yield ("+Inf" if bound == float("inf") else str(float(bound))), total


# name -> (labels, prose). Counters end in _total.
_COUNTERS: Final[Mapping[str, tuple[Labels, str]]] = {
    "events_consumed_total": (("topic",), "Records read from the event topics, redelivered ones included."),
    "events_unmatched_total": ((), "Events that no subscription wants."),
    "events_invalid_total": (("reason",), "Records that could not be read as an event; dead-lettered."),
    "events_skipped_total": (
        ("reason",),
        "Records that owe nothing: tombstones, those read again after a rebalance or by the next owner, and offsets given up with `dispatcher topics skip` (unreadable).",
    ),
    "deliveries_total": (("outcome",), "Deliveries settled, by how they ended."),
    "decisions_total": (
        ("decision", "reason"),
        "What was decided of deliveries, in the words of the attempt log: delivered, retry, parked, dead, dropped, left_to_another; and why, where there is a why.",
    ),
    "attempts_total": (
        ("outcome", "code_class"),
        "HTTP attempts: delivered, status (any other answer), or why there was no answer.",
    ),
    "deliveries_parked_total": (
        ("reason",),
        (
            "Deliveries written to a topic without an attempt: breaker, retry_after, queue_wait, cap, hold_limit, fair_share, shutdown, and"
            " paused, pending, invalid, sealed (kept for their subscription)."
        ),
    ),
    "retries_due_total": (
        ("level",),
        "Retries that fell due, by the level of the timing wheel they waited on.",
    ),
    "dead_letters_total": (("reason",), "Records written to the dead-letter topic."),
    "connections_opened_total": ((), "Connections to endpoints opened."),
    "api_refused_total": (
        ("why",),
        "Callers of the API that were refused: the bound that they met, or malformed (no HTTP that can be read).",
    ),
    "api_loop_seconds_total": ((), "Seconds of the event loop's time that requests of the API took."),
    "api_waits_total": (
        ("result",),
        "Requests that waited for their turn because deliveries were behind: served, refused (503).",
    ),
    "quota_exceeded_total": (
        ("quota",),
        "Requests of tenants that were refused because the tenant has, or takes, as much as it may: the quota.",
    ),
    "attempt_records_total": (
        ("result",),
        "Records for the attempt log: written, or dropped because the broker did not take them in time.",
    ),
    "commits_total": (("result",), "Offset commits: ok, refused (the partition moved on), failed."),
    "commits_ahead_of_log_total": (
        (),
        "Commits made although attempt records noted before them were not acknowledged within 5 s: a crash then loses those records.",
    ),
    "offsets_skipped_total": (
        ("topic",),
        "Offsets that retention deleted before they were read: lost, but for markers of transactions among them.",
    ),
    "position_jumps_total": (
        ("reason",),
        "Times that a partition was read on elsewhere than where it had come to: retention, expired, made_anew, cut.",
    ),
    "rebalances_total": ((), "Times the group gave this member a new assignment."),
    "registry_reloads_total": (("result",), "Loads of the subscriptions file: ok, failed."),
    "events_published_total": (
        ("result",),
        "Events that came over HTTP: published, duplicate (of the window), refused, failed (the broker).",
    ),
    "operational_events_total": (
        ("result",),
        "Events about subscriptions and deliveries: published, dropped (too many at a time).",
    ),
    "replay_deliveries_total": (
        ("result",),
        "Deliveries of the replays that this process runs: written (to the replay topic), sent (done with), skipped.",
    ),
    "history_records_total": (
        ("result",),
        "Records of the followed topics: indexed, refused (they say nothing that the history understands), skipped (a gap: passed over or deleted before they were read).",
    ),
    "history_queries_total": (
        ("result",),
        "Questions to the history's store: answered, slow (answered after more than a second), too_long (given up at the time limit), failed.",
    ),
    "trace_spans_total": (
        ("result",),
        "Spans for the collector: exported, dropped (too many waited to be sent), failed (the collector did not take them).",
    ),
    "validations_total": (
        ("result",),
        "Times an endpoint was asked whether it wants its events: passed, refused.",
    ),
}

_DEAD: Final = (
    "exhausted",
    "gone",
    "disabled",
    "failing",
    "unsendable",
    "body_expired",
    "body_unreadable",
)
_DROPPED: Final = (
    "cancelled",
    "deleted",
    "disabled",
    "expired_while_paused",
    "paused",
    "pending",
    "purged",
    "record_gone",
    "superseded",
)
_NO_DELIVERY: Final = "invalid"
"""The reason of a dead letter that is a record, and no delivery."""

_PARKED: Final = tuple(reason for reason in REASONS if reason != "other")

# Every value that the labels of a counter can have. Each exists with 0 from the start: Prometheus can't see the increase of a
# series whose first sample is 250, and an alarm on it stays silent for the first burst. What depends on the settings (topics,
# levels) is added by `Metrics.expect`.
_VALUES: Final[Mapping[str, tuple[Labels, ...]]] = {
    "events_invalid_total": tuple(
        (reason,)
        for reason in ("json", "type", "id", "tenant", "headers", "cloudevent", "content_type", "unreadable")
    ),
    "events_skipped_total": (("seen",), ("tombstone",), ("unreadable",)),
    "replay_deliveries_total": (("written",), ("sent",), ("skipped",)),
    "deliveries_total": (
        ("delivered",),
        ("dead_lettered",),
        *((f"dropped_{reason}",) for reason in _DROPPED),
    ),
    "decisions_total": (
        *((decision, "") for decision in (DELIVERED, RETRY, LEFT_TO_ANOTHER)),
        *((PARKED, reason) for reason in _PARKED),
        *((DEAD, reason) for reason in _DEAD),
        *((DROPPED, reason) for reason in _DROPPED),
    ),
    "attempts_total": (
        ("delivered", "2xx"),
        *(("status", code_class) for code_class in ("1xx", "2xx", "3xx", "4xx", "5xx")),
        *((reason.value, "none") for reason in Reason),
    ),
    "deliveries_parked_total": tuple((reason,) for reason in _PARKED),
    "retries_due_total": (("memory",), ("parked",)),
    "dead_letters_total": tuple((reason,) for reason in (*_DEAD, _NO_DELIVERY)),
    "attempt_records_total": (("written",), ("dropped",)),
    "commits_total": (("ok",), ("refused",), ("failed",)),
    "position_jumps_total": (("retention",), ("expired",), ("made_anew",), ("cut",)),
    "registry_reloads_total": (("ok",), ("failed",)),
    "events_published_total": (("published",), ("duplicate",), ("refused",), ("failed",)),
    "operational_events_total": (("published",), ("dropped",)),
    "history_records_total": (("indexed",), ("refused",), ("skipped",)),
    "history_queries_total": (("answered",), ("slow",), ("too_long",), ("failed",)),
    "trace_spans_total": (("exported",), ("dropped",), ("failed",)),
    "validations_total": (("passed",), ("refused",)),
    "api_refused_total": (
        ("connections",),
        ("connections_of_address",),
        ("slow_head",),
        ("malformed",),
        ("requests_of_address",),
        ("requests_of_key",),
    ),
    "api_waits_total": (("served",), ("refused",)),
    "quota_exceeded_total": tuple((quota,) for quota in QUOTAS if not quota.startswith("max_")),
}

_GAUGES: Final[Mapping[str, tuple[Labels, str]]] = {
    "ready": ((), "1 while `/readyz` answers 200: events are taken up and delivered."),
    "deliveries_in_flight": ((), "Deliveries owed to consumed events: queued, being attempted, or held."),
    "deliveries_in_flight_bytes": ((), "Bytes of event bodies in flight, counted once per delivery."),
    "deliveries_queued": ((), "Deliveries waiting in their lane."),
    "deliveries_parked_waiting": (
        ("reason",),
        "Deliveries that wait in the parked topic for their endpoint, in the partitions of this process, by why they were parked.",
    ),
    "deliveries_parked_oldest_seconds": (
        ("reason",),
        "For how long the oldest of these has waited, by why it was parked; of each subscription the next one to go counts. Absent where nothing is parked.",
    ),
    "deliveries_held": ((), "Deliveries waiting in memory for a near retry, their offset not committed."),
    "lanes": ((), "Origins (scheme, host, port) with anything queued or recently in flight."),
    "breakers_open": (("scope",), "Circuit breakers that are open or probing, of a subscription or a host."),
    "tenants_at_share": (
        (),
        "Tenants that may begin no attempt at the moment, since they have their share of all that may be under way.",
    ),
    "connections": (("state",), "Connections to endpoints: idle, busy, connecting."),
    "partition_lag": (("topic", "partition"), "Records not yet taken up, per assigned partition."),
    "partition_held_seconds": (
        ("topic", "partition"),
        "How long the lowest offset that still owes a delivery has not moved.",
    ),
    "subscriptions": (("status",), "Subscriptions known, by status."),
    "outbox_waiting": ((), "Records waiting to be acknowledged by the broker."),
    "trace_spans_waiting": ((), "Spans that wait to be sent to the collector."),
    "attempt_records_waiting": ((), "Records of the attempt log waiting to be acknowledged by the broker."),
    "partitions_stuck": (
        ("topic", "partition"),
        "1 while reading stands before a batch that can't be unpacked; `/readyz` names the way past it.",
    ),
    "history_behind_seconds": (
        (),
        "Age of what the history of this process knows: everything before is indexed, but for gaps.",
    ),
    "history_behind_records": (
        (),
        "Records of the followed topics that are not indexed yet, as of the last look, in this process's partitions.",
    ),
    "replays": (
        ("state",),
        "Replays by their state. Every process knows all of them: take the maximum, not the sum.",
    ),
    "replay_deliveries_behind": (
        (),
        "Deliveries that the replays of this process have written and that are not sent yet; high while endpoints are slow or a replay is paused.",
    ),
    "history_rows": ((), "Rows of the history's store, about."),
    "history_bytes": ((), "Bytes of the history's store."),
    "interventions": (
        ("state",),
        "Retries, cancels, deliveries and purges that people have asked for and that are remembered: pending, or ended.",
    ),
    "worker_up": (
        ("worker",),
        "With --workers only: 1 while the worker answers with its metrics; 0 while it is started anew or hangs.",
    ),
    "tenants_at_quota": (
        ("quota",),
        "Tenants that live at a quota: one of a count refused them, or one of a rate for a minute, and again within the last ten minutes.",
    ),
    "consumption_paused": ((), "1 while the in-flight caps keep new events from being consumed."),
}

_HISTOGRAMS: Final[Mapping[str, tuple[tuple[float, ...], str]]] = {
    "attempt_duration_seconds": (
        ATTEMPT_BUCKETS,
        "From the start of an attempt (connect included) to its result.",
    ),
    "delivery_latency_seconds": (LATENCY_BUCKETS, "From the record's timestamp to the acknowledgement."),
    "retry_lateness_seconds": (LATENESS_BUCKETS, "How much later than due a retry came out of the wheel."),
    "history_query_seconds": (
        QUERY_BUCKETS,
        "What a question to the history's store took, those that failed too.",
    ),
    "event_loop_lag_seconds": (LAG_BUCKETS, "How much later than asked the event loop woke up."),
}


class Metrics:
    """The counters, and the one collector over them. Made once, passed to whoever counts."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        # Counted on the hot path:
        self.delivered = 0  # deliveries_total{delivered} and attempts_total{delivered,2xx}
        self.unmatched = 0
        # Counted per batch, or when something is out of the ordinary:
        self.consumed: defaultdict[str, int] = defaultdict(int)
        self.published: defaultdict[str, int] = defaultdict(int)
        self.announcements: defaultdict[str, int] = defaultdict(int)
        self.quota_exceeded: defaultdict[str, int] = defaultdict(int)
        self.validations: defaultdict[str, int] = defaultdict(int)
        self.skipped: defaultdict[str, int] = defaultdict(int)
        self.invalid: defaultdict[str, int] = defaultdict(int)
        self.deliveries: defaultdict[str, int] = defaultdict(int)  # all outcomes but delivered
        self.attempts: defaultdict[Labels, int] = defaultdict(int)  # all but (delivered, 2xx)
        self.retried = 0
        self.left_to_another = 0
        self.retries_due: defaultdict[str, int] = defaultdict(int)
        self.parked: defaultdict[str, int] = defaultdict(int)
        self.dead_letters: defaultdict[str, int] = defaultdict(int)
        self.commits: defaultdict[str, int] = defaultdict(int)
        self.commits_ahead_of_log = 0
        self.offsets_skipped: defaultdict[str, int] = defaultdict(int)
        self.jumps: defaultdict[str, int] = defaultdict(int)
        self.rebalances = 0
        self.attempt_duration = Histogram(ATTEMPT_BUCKETS)
        self.delivery_latency = Histogram(LATENCY_BUCKETS)
        self.retry_lateness = Histogram(LATENESS_BUCKETS)
        self.history_query = Histogram(QUERY_BUCKETS)
        self.history_queries: defaultdict[str, int] = defaultdict(int)
        self.event_loop_lag = Histogram(LAG_BUCKETS)
        self._expected: dict[str, set[Labels]] = {
            name: set(_VALUES.get(name, ())) if labels else {()} for name, (labels, _) in _COUNTERS.items()
        }
        self._reads: dict[str, Read] = {
            "events_consumed_total": lambda: _by_word(self.consumed),
            "events_unmatched_total": lambda: self.unmatched,
            "events_invalid_total": lambda: _by_word(self.invalid),
            "events_published_total": lambda: _by_word(self.published),
            "operational_events_total": lambda: _by_word(self.announcements),
            "history_queries_total": lambda: _by_word(self.history_queries),
            "validations_total": lambda: _by_word(self.validations),
            "quota_exceeded_total": lambda: _by_word(self.quota_exceeded),
            "events_skipped_total": lambda: _by_word(self.skipped),
            "deliveries_total": lambda: _by_word({**self.deliveries, "delivered": self.delivered}),
            "decisions_total": self._decisions,
            "attempts_total": lambda: {**self.attempts, ("delivered", "2xx"): self.delivered},
            "deliveries_parked_total": lambda: _by_word(self.parked),
            "retries_due_total": lambda: _by_word(self.retries_due),
            "dead_letters_total": lambda: _by_word(self.dead_letters),
            "commits_total": lambda: _by_word(self.commits),
            "commits_ahead_of_log_total": lambda: self.commits_ahead_of_log,
            "offsets_skipped_total": lambda: _by_word(self.offsets_skipped),
            "position_jumps_total": lambda: _by_word(self.jumps),
            "rebalances_total": lambda: self.rebalances,
        }
        self._histograms = {
            "attempt_duration_seconds": self.attempt_duration,
            "delivery_latency_seconds": self.delivery_latency,
            "retry_lateness_seconds": self.retry_lateness,
            "history_query_seconds": self.history_query,
            "event_loop_lag_seconds": self.event_loop_lag,
        }
        self.registry = registry if registry is not None else CollectorRegistry()
        self.registry.register(self)

    def reads(self, name: str, read: Read) -> None:
        """Let `read` give the value of the metric `name` (without prefix) at scrape time."""
        if name not in _COUNTERS and name not in _GAUGES:
            raise KeyError(f"no such metric: {name}")
        self._reads[name] = read

    def expect(self, name: str, values: Iterable[str]) -> None:
        """Let the counter `name` (without prefix) begin with 0 for each of these values of its one label."""
        self._expected[name].update((value,) for value in values)

    def unexpected(self) -> dict[str, set[Labels]]:
        """Labels that have been counted and did not begin with 0, by counter."""
        found = {
            name: {labels for labels, _ in self._values(name)} - self._expected[name] for name in _COUNTERS
        }
        return {name: labels for name, labels in found.items() if labels}

    def collect(self) -> Iterable[Metric]:
        """Called by the registry on each scrape."""
        for name, (labels, prose) in _COUNTERS.items():
            counter = CounterMetricFamily(f"dispatcher_{name.removesuffix('_total')}", prose, labels=labels)
            for values, value in self._values(name):
                counter.add_metric(values, value)
            yield counter
        for name, (labels, prose) in _GAUGES.items():
            gauge = GaugeMetricFamily(f"dispatcher_{name}", prose, labels=labels)
            for values, value in self._values(name):
                gauge.add_metric(values, value)
            yield gauge
        for name, (_, prose) in _HISTOGRAMS.items():
            histogram = self._histograms[name]
            family = HistogramMetricFamily(f"dispatcher_{name}", prose)
            family.add_metric([], list(histogram.buckets()), histogram.sum)
            yield family
        build = GaugeMetricFamily("dispatcher_build_info", "Always 1.", labels=("version", "python"))
        build.add_metric((__version__, platform.python_version()), 1)
        yield build

    def _decisions(self) -> Reading:
        found: dict[Labels, float] = {
            (DELIVERED, ""): self.delivered,
            (RETRY, ""): self.retried,
            (LEFT_TO_ANOTHER, ""): self.left_to_another,
        }
        found |= {(PARKED, reason): count for reason, count in self.parked.items()}
        found |= {
            (DEAD, reason): count for reason, count in self.dead_letters.items() if reason != _NO_DELIVERY
        }
        dropped = f"{DROPPED}_"
        found |= {
            (DROPPED, outcome.removeprefix(dropped)): count
            for outcome, count in self.deliveries.items()
            if outcome.startswith(dropped)
        }
        return found

    def _values(self, name: str) -> Iterator[tuple[Labels, float]]:
        expected = self._expected.get(name, ())
        read = self._reads.get(name)
        value: Reading = {} if read is None else read()
        if not isinstance(value, Mapping):
            value = {(): value}
        yield from {**dict.fromkeys(expected, 0.0), **value}.items()


def _by_word(counts: Mapping[str, int]) -> Reading:
    return {(word,): count for word, count in counts.items()}
