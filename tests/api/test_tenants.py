"""Quotas over HTTP, and what a tenant is told that has reached one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.api.real import made, running
from tests.api.serving import KEY, fields, key_of, problem, serving
from tests.e2e.daemon import eventually

PATH = "/v1/tenants/acme/quotas"
NEW = {"url": "http://127.0.0.1:80/", "event_types": ["*"]}


async def test_quotas_are_shown_and_replaced_as_a_whole() -> None:
    async with serving(KEY) as (call, _):
        shown = await call("GET", PATH)
        assert (shown.status, shown.headers["ETag"]) == (200, '"0"')
        assert (shown.json["own"], shown.json["version"], shown.json["updated_at"]) == ([], 0, None)
        quotas = shown.json["quotas"]
        assert (quotas["subscriptions"], quotas["bytes_per_second"], quotas["max_timeout"]) == (
            1000,
            "16MiB",
            "1m",
        )
        wanted = {"subscriptions": 5000, "bytes_per_second": "1GiB", "max_timeout": "10m", "replays": None}
        put = await call("PUT", PATH, wanted, headers={"If-Match": '"0"'})
        assert (put.status, put.headers["ETag"]) == (200, '"1"')
        assert put.json["own"] == ["subscriptions", "bytes_per_second", "max_timeout"]
        assert put.json["quotas"] == {**quotas, **{name: wanted[name] for name in put.json["own"]}}
        assert (await call("GET", PATH)).json == put.json
        problem(await call("PUT", PATH, {}, headers={"If-Match": '"0"'}), 412, "version-mismatch")
        again = await call("PUT", PATH, {"replays": 5})
        assert again.json["own"] == ["replays"]
        assert (await call("PUT", PATH, {})).json["quotas"] == quotas


@pytest.mark.parametrize(
    ("wanted", "wrong"),
    [
        ({"subscriptions": -1}, ["subscriptions"]),
        ({"subscriptions": "5"}, ["subscriptions"]),
        ({"events_per_second": 0}, ["events_per_second"]),
        ({"max_timeout": "11m"}, ["max_timeout"]),
        ({"max_timeout": "1ms", "bytes_per_second": "1B"}, ["bytes_per_second", "max_timeout"]),
        ({"bytes_per_second": "much"}, ["bytes_per_second"]),
        ({"max_patterns": 257}, ["max_patterns"]),
        ({"subscription": 5}, ["subscription"]),
    ],
)
async def test_a_quota_that_can_not_be_is_named(wanted: dict[str, Any], wrong: list[str]) -> None:
    async with serving(KEY) as (call, _):
        assert fields(problem(await call("PUT", PATH, wanted), 422, "invalid")) == wrong
        assert (await call("GET", PATH)).json["version"] == 0


async def test_names_that_no_tenant_can_have_get_no_quotas() -> None:
    async with serving(KEY) as (call, _):
        answer = await call("PUT", "/v1/tenants/*/quotas", {"subscriptions": 5})
        assert fields(problem(answer, 422, "invalid")) == ["tenant"]
        for name in ("a%2Fb", "%7Bacme%7D", "%C3%A4"):
            assert (await call("PUT", f"/v1/tenants/{name}/quotas", {"subscriptions": 5})).status == 200


async def test_a_tenant_at_its_quotas_is_refused_by_name_and_an_operator_lets_it_go_on(
    tmp_path: Path,
) -> None:
    """On a whole dispatcher: what is refused, what is there stays, and a restart keeps what the operator gave."""
    quotas = {
        "subscriptions": 2,
        "subscriptions_per_origin": 1,
        "max_timeout": "10s",
        "events_per_second": 1,
    }
    async with running(tmp_path, KEY, quotas=quotas) as (call, _):
        acme = await key_of(call, "acme", "publish", "read", "write")
        first = made(await acme("POST", "/v1/subscriptions", NEW))["subscription"]["id"]
        document = problem(await acme("POST", "/v1/subscriptions", NEW), 429, "quota-exceeded")
        assert document["quota"] == "subscriptions_per_origin"
        made(await acme("POST", "/v1/subscriptions", {**NEW, "url": "http://127.0.0.1:8081/"}))
        refused = await acme("POST", "/v1/subscriptions", {**NEW, "url": "http://127.0.0.1:8082/"})
        document = problem(refused, 429, "quota-exceeded")
        assert (document["quota"], "Retry-After" in refused.headers) == ("subscriptions", False)
        long = await acme("PATCH", f"/v1/subscriptions/{first}", {"timeout": "11s"})
        assert fields(problem(long, 422, "invalid")) == ["timeout"]
        assert "max_timeout" in long.json["errors"][0]["message"]
        event = [{"type": "a"}] * 5
        while (published := await acme("POST", "/v1/events", event)).status == 202:
            pass
        assert problem(published, 429, "quota-exceeded")["quota"] == "events_per_second"
        assert int(published.headers["Retry-After"]) >= 1
        assert (await call("POST", "/v1/events", [{"type": "a"}] * 100)).status == 202
        own = await acme("GET", PATH)
        assert own.json["used"] == {"subscriptions": 2}
        problem(await acme("GET", "/v1/tenants/globex/quotas"), 404, "not-found")
        problem(await acme("PUT", PATH, {}), 403, "forbidden")
        metrics = (await call("GET", "/metrics")).body.decode()
        assert 'dispatcher_quota_exceeded_total{quota="subscriptions"} 1.0' in metrics
        assert 'dispatcher_tenants_at_quota{quota="subscriptions"} 1.0' in metrics
        given = await call("PUT", PATH, {"subscriptions": 3, "max_timeout": "20s"})
        assert given.json["quotas"]["subscriptions"] == 3
        made(await acme("POST", "/v1/subscriptions", {**NEW, "url": "http://127.0.0.1:8082/"}))
        assert (await acme("PATCH", f"/v1/subscriptions/{first}", {"timeout": "11s"})).status == 200
    # Lower than what is there: all of it stays in force, and may be changed in what isn't beyond.
    async with running(tmp_path, KEY, quotas={"subscriptions": 0, "max_timeout": "1s"}) as (call, app):
        kept = (await call("GET", PATH)).json
        assert (kept["own"], kept["version"]) == (given.json["own"], given.json["version"])
        assert (kept["quotas"]["subscriptions"], kept["quotas"]["max_timeout"]) == (3, "20s")
        await call("PUT", PATH, {})
        assert len(app.registry.index) == 3
        assert {each.status for each in app.registry.index} == {"active"}
        changed = await call("PATCH", f"/v1/subscriptions/{first}", {"payload": "thin"})
        assert (changed.status, changed.json["timeout"]) == (200, "11s")


async def test_a_tenants_questions_to_the_history_are_held_against_its_quota(tmp_path: Path) -> None:
    async with running(tmp_path, KEY) as (call, app):
        acme = await key_of(call, "acme")
        assert (await acme("GET", "/v1/events")).status == 200
        with app.plane.quotas.admitted("acme", "queries"):
            await call("PUT", PATH, {"queries": 1})
            for method, path, body in (
                ("GET", "/v1/events", None),
                ("GET", "/v1/deliveries", None),
                ("GET", "/v1/events/evt_1", None),
                ("GET", "/v1/audit?subject=dlv_" + "0" * 24, None),
                (
                    "POST",
                    "/v1/replays",
                    {"source": "deliveries", "since": "2026-01-01T00:00:00Z", "dry_run": True},
                ),
            ):
                refused = await acme(method, path, body)
                assert problem(refused, 429, "quota-exceeded")["quota"] == "queries"
                assert int(refused.headers["Retry-After"]) >= 1
            assert (await call("GET", "/v1/events")).status == 200
            assert (await acme("GET", "/v1/subscriptions")).status == 200
        assert (await acme("GET", "/v1/events")).status == 200


async def test_a_tenants_streams_are_held_against_its_quota_while_they_are_open(tmp_path: Path) -> None:
    async with running(tmp_path, KEY) as (call, app):
        await call("PUT", PATH, {"streams": 1})
        # One caller after the other: what a caller may have is another bound.
        first, second = await key_of(call, "acme"), await key_of(call, "acme")
        headers = {"Authorization": f"Bearer {first.key}"}
        async with call.session.get(f"{call.base}/v1/stream", headers=headers) as stream:
            assert (await stream.content.readline()) == b"event: hello\n"
            refused = await second("GET", "/v1/stream")
            assert problem(refused, 429, "quota-exceeded")["quota"] == "streams"
            assert int(refused.headers["Retry-After"]) >= 1
            assert (await second("GET", "/v1/events")).status == 200
            async with call.session.get(
                f"{call.base}/v1/stream", headers={"Authorization": f"Bearer {KEY}"}
            ) as of_operator:
                assert of_operator.status == 200
        await eventually(lambda: not app.plane.quotas._under_way, 60)
        async with call.session.get(
            f"{call.base}/v1/stream", headers={"Authorization": f"Bearer {second.key}"}
        ) as again:
            assert again.status == 200
