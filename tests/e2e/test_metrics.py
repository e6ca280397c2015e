"""What a scrape shows, of a daemon that has met everything there is to count: the names and labels that were promised."""

from __future__ import annotations

import re
from pathlib import Path

from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families

from dispatcher.broker.base import Message
from dispatcher.telemetry.metrics import _VALUES
from tests.e2e.daemon import Daemon, Endpoint, envelope, eventually, publish
from tests.e2e.test_delivery import everything

# The design's list, name by name, with its labels.
PROMISED: dict[str, set[str]] = {
    "events_consumed_total": {"topic"},
    "events_unmatched_total": set(),
    "events_invalid_total": {"reason"},
    "deliveries_total": {"outcome"},
    "decisions_total": {"decision", "reason"},
    "attempts_total": {"outcome", "code_class"},
    "attempt_duration_seconds": set(),
    "delivery_latency_seconds": set(),
    "deliveries_in_flight": set(),
    "deliveries_queued": set(),
    "deliveries_held": set(),
    "deliveries_parked_total": {"reason"},
    "retries_due_total": {"level"},
    "retry_lateness_seconds": set(),
    "dead_letters_total": {"reason"},
    "lanes": set(),
    "connections": {"state"},
    "connections_opened_total": set(),
    "partition_lag": {"topic", "partition"},
    "partition_held_seconds": {"topic", "partition"},
    "commits_total": {"result"},
    "commits_ahead_of_log_total": set(),
    "rebalances_total": set(),
    "subscriptions": {"status"},
    "registry_reloads_total": {"result"},
    "event_loop_lag_seconds": set(),
    "build_info": {"version", "python"},
}


async def test_every_metric_that_was_promised_is_shown_with_its_labels(tmp_path: Path) -> None:
    async def by_type(request: web.Request) -> web.Response:
        return web.Response(status=503 if b"doomed" in await request.read() else 200)

    url = f"sqlite:///{tmp_path}/log.db"
    bodies = [
        envelope(1, "test.event")[1],
        envelope(2, "test.doomed")[1],
        envelope(3, "nobody.wants", tenant="unknown")[1],
        b"no event",
    ]
    await publish(url, [Message("events", body) for body in bodies])
    async with Endpoint(by_type) as endpoint:
        subscription = everything(
            endpoint, event_types=["test.*"], retry={"schedule": ["100ms"], "jitter": 0}
        )
        daemon = Daemon(tmp_path, url, [subscription])
        await daemon.start()
        try:

            async def counted() -> float:
                return await daemon.metric("dead_letters_total", 'reason="exhausted"')

            seen = 0.0
            while not seen:
                assert daemon.running, daemon.log()
                seen = await counted()
            await eventually(lambda: len(endpoint.requests) == 3, within=60)
            while not await daemon.metric("commits_total", 'result="ok"'):
                assert daemon.running, daemon.log()
            _, text = await daemon.get("/metrics")
        finally:
            await daemon.stop()
    families = {family.name: family for family in text_string_to_metric_families(text.decode())}
    for name, labels in PROMISED.items():
        family = families[f"dispatcher_{name.removesuffix('_total')}"]
        assert family.documentation, name
        shown = [
            set(sample.labels) - {"le"} for sample in family.samples if not sample.name.endswith("_created")
        ]
        assert all(each == labels for each in shown), name
        assert shown, name
    for family in families.values():
        for sample in family.samples:
            assert len(sample.labels) <= 2, sample
            assert not any("http" in value or "sub_" in value for value in sample.labels.values()), sample


async def test_every_counter_of_a_documented_alarm_is_0_before_the_broker_is_there(tmp_path: Path) -> None:
    """Else its first burst is no increase: Prometheus begins to see a series at what it has by then."""
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    table = page.partition("## Alarms")[2].partition("\n## ")[0]
    alarmed = set(re.findall(r"\bdispatcher_([a-z_]+_total)\b", table))
    assert alarmed >= {"dead_letters_total", "commits_total", "registry_reloads_total"}
    daemon = Daemon(tmp_path, "kafka://127.0.0.1:1", [])
    await daemon.start(ready=False)
    try:
        while not (text := (await daemon.get("/metrics"))[1]):
            assert daemon.running, daemon.log()
    finally:
        await daemon.stop()
    families = {family.name: family for family in text_string_to_metric_families(text.decode())}
    for name in alarmed | set(_VALUES):
        samples = families[f"dispatcher_{name.removesuffix('_total')}"].samples
        shown = {tuple(sorted(sample.labels.values())): sample.value for sample in samples}
        assert shown
        for labels in _VALUES.get(name, shown):  # the others' labels are topics, which settings name
            assert shown[tuple(sorted(labels))] == (labels == ("ok",) and name == "registry_reloads_total")
    assert families["dispatcher_events_consumed"].samples[0].labels == {"topic": "events"}
    levels = {sample.labels["level"] for sample in families["dispatcher_retries_due"].samples}
    assert levels == {"memory", "30s", "2m", "10m", "1h", "6h", "parked"}
