"""Issues over HTTP, on the real control plane: what is shown of them, and that marks are for all replicas and every start."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from dispatcher.core.text.times import rfc3339
from dispatcher.history.base import LogPartition
from tests.api.real import keep, made, running
from tests.api.serving import KEY, fields, problem
from tests.history.records import attempt, batch

NOW = int(time.time() * 1000)
SEED = LogPartition("seed", "", 0)
MINE: dict[str, Any] = {"v": 2, "tenant": "acme"}
RECORDS = [
    *[
        attempt(
            at, at, "sub_a", time_ms=NOW - 1000 + at, decision="retry", status=503, due_ms=NOW + 5000, **MINE
        )
        for at in range(40)
    ],
    *[
        attempt(at, at, "sub_a", time_ms=NOW - 1000, decision="dead", reason="exhausted", status=503, **MINE)
        for at in range(40, 60)
    ],
    attempt(60, 60, "sub_b", time_ms=NOW - 5000, decision="retry", failure="timeout", **MINE),
    attempt(61, 61, "sub_b", time_ms=NOW - 4000, **MINE),
    attempt(62, 62, "sub_c", time_ms=NOW - 1000, decision="parked", reason="paused", v=2, tenant="globex"),
]


async def test_rows_come_as_lines_that_can_be_acknowledged_ignored_and_reopened(tmp_path: Path) -> None:
    async with running(tmp_path, KEY) as (call, app):
        assert app._history is not None
        for id_, tenant in (("sub_a", "acme"), ("sub_b", "acme"), ("sub_c", "globex")):
            made(
                await call(
                    "POST",
                    "/v1/subscriptions",
                    {"id": id_, "url": "http://127.0.0.1:80/", "event_types": ["a"], "tenant": tenant},
                )
            )
        acme = await call("POST", "/v1/keys", {"name": "a", "scope": "tenant", "tenant": "acme"})
        tenant_call = call.using(acme.json["secret"])
        await keep(app._history.store, batch(RECORDS, None, 63, partition=SEED))

        found = (await call("GET", "/v1/issues")).json
        assert [(each["id"], each["state"], each["deliveries"]) for each in found["issues"]] == [
            ("sub_a:503", "open", 60),
            ("sub_c:paused", "open", 1),
            ("sub_b:timeout", "resolved", 1),
        ]
        assert (found["at_least"], found["cut"], found["gaps"]) == (False, False, [])
        assert found["as_of"] is not None
        first = found["issues"][0]
        assert first == {
            "id": "sub_a:503",
            "subscription_id": "sub_a",
            "tenant": "acme",
            "host": "127.0.0.1",
            "cause": "503",
            "state": "open",
            "deliveries": 60,
            "pending": 0,
            "retrying": 40,
            "dead": 20,
            "first_at": rfc3339(NOW - 1000),
            "last_failure_at": rfc3339(NOW - 961),
            "next_attempt_at": rfc3339(NOW + 5000),
            "last_success_at": None,
            "mark": None,
        }
        assert found["issues"][2]["last_success_at"] == rfc3339(NOW - 4000)
        # The deliveries that it counts are listed by its filters.
        listed = (await call("GET", "/v1/deliveries?subscription=sub_a&cause=503&limit=200")).json
        assert len(listed["deliveries"]) == 60
        listed = (await call("GET", "/v1/deliveries?subscription=sub_a&cause=503&state=dead")).json
        assert len(listed["deliveries"]) == 20
        listed = (await call("GET", "/v1/deliveries?subscription=sub_b&cause=timeout")).json
        assert [each["failure"] for each in listed["deliveries"]] == ["timeout"]
        listed = (await call("GET", "/v1/deliveries?subscription=sub_b&cause=200")).json
        assert listed["deliveries"] == []  # what is delivered has no cause

        own = (await tenant_call("GET", "/v1/issues?state=open")).json
        assert [each["id"] for each in own["issues"]] == ["sub_a:503"]
        assert (await tenant_call("GET", "/v1/issues?tenant=globex")).json["issues"] == []
        assert (await tenant_call("POST", "/v1/issues/sub_c:paused/acknowledge")).status == 404

        acknowledged = (await call("POST", "/v1/issues/sub_a:503/acknowledge")).json
        assert acknowledged["state"] == "acknowledged"
        assert acknowledged["mark"]["by"] == "key 1 of the settings"
        # To a tenant every operator is `operator`.
        (seen,) = (await tenant_call("GET", "/v1/issues?state=acknowledged")).json["issues"]
        assert seen["mark"]["by"] == "operator"
        until = rfc3339(NOW + 3_600_000)
        ignored = (await tenant_call("POST", "/v1/issues/sub_a:503/ignore", {"until": until})).json
        assert (ignored["state"], ignored["mark"]["by"], ignored["mark"]["until"]) == ("ignored", "a", until)
        refused = problem(
            await call("POST", "/v1/issues/sub_a:503/ignore", {"until": rfc3339(NOW - 1000)}), 422, "invalid"
        )
        assert fields(refused) == ["until"]
        audit = (await call("GET", "/v1/audit?subject=sub_a&action=issue.")).json["records"]
        assert {(each["action"], each["details"]["cause"]) for each in audit} <= {
            ("issue.acknowledge", "503"),
            ("issue.ignore", "503"),
        }

    # The marks are records of the control topic: the next process has them.
    async with running(tmp_path, KEY) as (call, _):
        (again,) = (await call("GET", "/v1/issues?state=ignored")).json["issues"]
        assert (again["id"], again["mark"]["until"]) == ("sub_a:503", until)
        assert (await call("POST", "/v1/issues/sub_a:503/reopen")).json["state"] == "open"
        assert (await call("GET", "/v1/issues?state=ignored")).json["issues"] == []


async def test_what_is_no_filter_and_no_time_is_refused(tmp_path: Path) -> None:
    async with running(tmp_path, KEY) as (call, _):
        for query, field in (("state=solved", "state"), ("limit=201", "limit"), ("since=soon", "since")):
            assert fields(problem(await call("GET", f"/v1/issues?{query}"), 422, "invalid")) == [field]
        answer = await call("POST", "/v1/issues/sub_a:503/ignore", {"until": "tomorrow"})
        assert fields(problem(answer, 422, "invalid")) == ["until"]
        problem(await call("POST", "/v1/issues/sub_a:503/acknowledge"), 404, "not-found")
