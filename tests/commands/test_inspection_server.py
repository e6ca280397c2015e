from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import orjson
import pytest
from multidict import CIMultiDict

from dispatcher.api.deliveries import DeliveryAttempts, DeliveryPage
from dispatcher.api.sessions import SessionReply
from dispatcher.commands.inspection import Inspection
from dispatcher.commands.inspection_server import InspectionServer, ReceivedDelivery, host_allowed
from dispatcher.commands.receiver import Arrival, ReceiverAnswer, SignatureVerdict
from tests.commands.test_inspection import KEY, NOW, arrival, signed


class Looking:
    """A server, what it shows, and a client."""

    def __init__(self, inspection: Inspection, session: aiohttp.ClientSession, url: str) -> None:
        self.inspection = inspection
        self.session = session
        self.url = url
        self.now = NOW

    async def get(self, path: str, status: int = 200, **headers: str) -> Any:
        async with self.session.get(self.url + path, headers=headers) as response:
            body = await response.read()
            assert response.status == status, body
            return orjson.loads(body)

    def keep(self, *requests: Arrival) -> None:
        for each in requests:
            self.inspection.keep(each)

    async def ids(self, query: str) -> list[str]:
        rows = (await self.get(f"/v1/deliveries?{query}"))["deliveries"]
        return [row["event_id"] for row in rows]


@asynccontextmanager
async def looking(inspection: Inspection | None = None) -> AsyncIterator[Looking]:
    inspection = Inspection() if inspection is None else inspection
    seen: list[Looking] = []
    server = InspectionServer(inspection, KEY, "http://127.0.0.1:9000/", lambda: seen[0].now)
    port = await server.start("127.0.0.1")
    try:
        async with aiohttp.ClientSession() as session:
            seen.append(Looking(inspection, session, f"http://127.0.0.1:{port}"))
            yield seen[0]
    finally:
        await server.stop()


async def test_the_answers_have_the_shapes_of_the_dispatchers_own() -> None:
    async with looking() as page:
        page.keep(signed(), arrival(2, answer=ReceiverAnswer(503)))
        listed = await page.get("/v1/deliveries")
        for row in listed["deliveries"]:
            ReceivedDelivery.model_validate(row)
            del row["received"]
        DeliveryPage.model_validate(listed)
        detail = await page.get(f"/v1/deliveries/{listed['deliveries'][0]['id']}")
        del detail["delivery"]["received"]
        DeliveryAttempts.model_validate(detail)
        session = SessionReply.model_validate(await page.get("/v1/session"))
        assert session.principal is not None
        assert session.principal.capabilities == ["read"]


async def test_a_delivery_tells_its_requests_their_headers_signatures_and_answers() -> None:
    async with looking() as page:
        first = signed(b'{"a": 1}')._replace(
            answer=ReceiverAnswer(503, 2.0), target="/hooks?a=b", remote="192.0.2.1"
        )
        second = first._replace(
            serial=2, number=2, answer=ReceiverAnswer(), body=b"{}", verdict=SignatureVerdict.WRONG
        )
        page.now = NOW + 5
        page.keep(first, second)
        (row,) = (await page.get("/v1/deliveries"))["deliveries"]
        assert (row["state"], row["status"], row["reason"], row["attempts"]) == ("delivered", 200, "wrong", 2)
        assert row["received"]["url"] == "http://127.0.0.1:9000/hooks?a=b"
        detail = await page.get(f"/v1/deliveries/{row['id']}")
        one, two = detail["attempts"]
        assert (one["status"], one["decision"], one["total_ms"]) == (503, "retry", 2000)
        assert one["received"]["signature"]["verdict"] == "valid"
        assert one["remote_address"] == "192.0.2.1"
        assert ["webhook-id", "evt_1"] in one["request_headers"]
        assert two["received"]["signature"]["verdict"] == "wrong"
        assert two["received"]["signature"]["expected"] != dict(two["request_headers"])["webhook-signature"]


async def test_a_body_is_its_bytes_and_no_browser_runs_it() -> None:
    async with looking() as page:
        body = bytes(range(256))
        headers = CIMultiDict({"content-type": "text/html"})
        page.keep(
            arrival(1, body=body, headers=headers),
            arrival(2, headers=CIMultiDict({"content-type": "\udcff"})),
        )
        async with page.session.get(f"{page.url}/v1/events/evt_1/payload?source=requests-0-1") as response:
            assert await response.read() == body
            assert response.headers["Content-Type"] == "text/html"
            assert response.headers["Content-Disposition"] == "attachment"
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            assert "sandbox" in response.headers["Content-Security-Policy"]
        async with page.session.get(f"{page.url}/v1/events/evt_2/payload?source=requests-0-2") as response:
            assert response.headers["Content-Type"] == "application/octet-stream"


@pytest.mark.parametrize(
    ("source", "status"), [("requests-0-2", 410), ("requests-0-1", 410), ("events-0-1", 422), ("", 422)]
)
async def test_a_body_that_is_not_kept_is_a_problem(source: str, status: int) -> None:
    async with looking() as page:
        page.keep(arrival(1, id="evt_other"))
        problem = await page.get(f"/v1/events/evt_1/payload?source={source}", status)
        assert problem["type"].startswith("urn:webhook-dispatcher:problem:")


async def test_an_answer_that_is_still_to_come_a_reset_and_a_sender_that_left_are_told_apart() -> None:
    async with looking() as page:
        left = arrival(3, answer=ReceiverAnswer(200, 30))
        page.keep(arrival(1, answer=ReceiverAnswer(200, 30)), arrival(2, answer=ReceiverAnswer(None)), left)
        page.inspection.note_left(left)
        rows = (await page.get("/v1/deliveries"))["deliveries"]
        assert [(row["received"]["answer"], row["state"], row["status"]) for row in rows] == [
            ("left", "retrying", None),
            ("reset", "retrying", None),
            ("waiting", "pending", None),
        ]
        page.now = NOW + 31
        row = (await page.get("/v1/deliveries"))["deliveries"][-1]
        assert (row["received"]["answer"], row["state"], row["status"]) == ("answered", "delivered", 200)


async def test_the_list_is_filtered_and_paged() -> None:
    async with looking() as page:
        page.keep(
            arrival(1, answer=ReceiverAnswer(503), headers=CIMultiDict({"webhook-event-type": "order.paid"})),
            arrival(2, answer=ReceiverAnswer(404), verdict=SignatureVerdict.WRONG),
            arrival(
                3, verdict=SignatureVerdict.VALID, at=NOW + 60, headers=CIMultiDict({"host": "a.example"})
            ),
        )
        page.now = NOW + 60
        for query, ids in {
            "": ["evt_3", "evt_2", "evt_1"],
            "state=failed": ["evt_2", "evt_1"],
            "state=delivered": ["evt_3"],
            "status=5xx": ["evt_1"],
            "status=404": ["evt_2"],
            "reason=wrong": ["evt_2"],
            "reason=valid": ["evt_3"],
            "event=evt_2": ["evt_2"],
            "event_type=order.*": ["evt_1"],
            "host=a.example": ["evt_3"],
            "tenant=acme": [],
            "cause=timeout": [],
            "since=2023-11-14T22:13:50Z": ["evt_3"],
            "until=2023-11-14T22:13:50Z": ["evt_2", "evt_1"],
        }.items():
            assert await page.ids(query) == ids, query
        first = await page.get("/v1/deliveries?limit=2")
        assert first["next_cursor"] == "2"
        second = await page.get(f"/v1/deliveries?limit=2&cursor={first['next_cursor']}")
        assert [row["event_id"] for row in second["deliveries"]] == ["evt_1"]
        assert second["next_cursor"] is None


@pytest.mark.parametrize("query", ["state=odd", "limit=0", "cursor=x", "nonsense=1", "since=now"])
async def test_a_wrong_query_is_told(query: str) -> None:
    async with looking() as page:
        assert (await page.get(f"/v1/deliveries?{query}", 422))["errors"]


@pytest.mark.parametrize("path", ["/v1/deliveries/dlv_0", "/v1/subscriptions", "/inspect/assets/none.js"])
async def test_what_is_not_there_is_a_problem(path: str) -> None:
    async with looking() as page:
        assert (await page.get(path, 404))["type"].endswith(":not-found")


async def test_nothing_can_be_changed() -> None:
    async with looking() as page:
        for method in ("POST", "PUT", "PATCH", "DELETE"):
            async with page.session.request(method, f"{page.url}/v1/deliveries") as response:
                assert response.status == 405


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("127.0.0.1:9001", True),
        ("localhost:9001", True),
        ("LOCALHOST", True),
        ("[::1]:9001", True),
        ("192.168.1.5:9001", True),
        ("receiver.internal:9001", True),
        ("evil.example:9001", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("", False),
        ("[evil", False),
    ],
)
def test_only_names_that_nobody_else_can_point_here_are_served(host: str, allowed: bool) -> None:
    assert host_allowed(host, "receiver.internal") is allowed


async def test_a_name_of_somebody_else_gets_nothing() -> None:
    async with looking() as page:
        page.keep(arrival(1))
        for path in ("/", "/inspect/", "/v1/deliveries", "/v1/session", "/v1/stream"):
            problem = await page.get(path, 403, Host="evil.example")
            assert problem["type"].endswith(":foreign-origin")


async def test_no_answer_may_be_read_by_another_site() -> None:
    async with looking() as page:
        for path in ("/v1/deliveries", "/v1/session", "/inspect/"):
            async with page.session.get(
                page.url + path, headers={"Origin": "https://evil.example"}
            ) as response:
                assert response.headers["Cross-Origin-Resource-Policy"] == "same-origin"
                assert "Access-Control-Allow-Origin" not in response.headers


async def test_the_page_has_the_consoles_policy_and_its_root_leads_to_it() -> None:
    async with looking() as page, page.session.get(page.url) as response:
        assert response.status == 200
        assert str(response.url) == f"{page.url}/inspect/"
        policy = response.headers["Content-Security-Policy"]
        assert "script-src 'self'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert "require-trusted-types-for 'script'" in policy


async def test_the_stream_tells_what_comes() -> None:
    async with looking() as page:
        page.keep(arrival(1))
        async with page.session.get(f"{page.url}/v1/stream") as response:
            assert response.headers["Content-Type"] == "text/event-stream"
            assert (
                await response.content.readuntil(b"\n\n") == b'event: hello\ndata: {"replica":"inspect"}\n\n'
            )
            for serial in range(2, 26):
                page.keep(arrival(serial))
            told = await asyncio.wait_for(response.content.readuntil(b"\n\n"), 30)
            name, data = told.decode().strip().split("\n")
            assert name == "event: deliveries"
            news = json.loads(data.removeprefix("data: "))
            assert [row["event_id"] for row in news["deliveries"]] == [f"evt_{n}" for n in range(25, 5, -1)]
            assert news["more"] == 4


async def test_a_stream_ends_with_the_server_and_is_forgotten_with_its_reader() -> None:
    inspection = Inspection()
    async with looking(inspection) as page, page.session.get(f"{page.url}/v1/stream") as response:
        await response.content.readuntil(b"\n\n")
        assert len(inspection.changed) == 1
    assert inspection.changed == set()
