"""The OpenAPI document: committed, served, valid, and nothing in it that isn't so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import orjson

from dispatcher.api import openapi
from dispatcher.api.table import ROUTES
from tests.api.serving import serving

ROOT = Path(__file__).parents[2]


def document() -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads(openapi.document())
    return found


def test_the_committed_document_is_that_of_the_code() -> None:
    committed = (ROOT / "docs" / "openapi.json").read_bytes()
    assert committed == openapi.document(), (
        "the API has changed: `make openapi` writes docs/openapi.json anew"
    )


async def test_the_served_document_is_the_committed_one() -> None:
    async with serving() as (call, _):
        answer = await call("GET", "/openapi.json")
        assert answer.body == (ROOT / "docs" / "openapi.json").read_bytes()
        assert answer.headers["Content-Type"] == "application/json"
        again = await call("GET", "/openapi.json", headers={"If-None-Match": answer.headers["ETag"]})
        assert (again.status, again.body) == (304, b"")


def test_every_reference_leads_to_a_schema_and_every_schema_is_used() -> None:
    text = openapi.document().decode()
    used = set(re.findall(r'"\$ref": "#/components/schemas/([^"]+)"', text))
    assert used == document()["components"]["schemas"].keys()


def test_every_route_is_documented_with_its_problems() -> None:
    paths = document()["paths"]
    for route in ROUTES:
        operation = paths[route.path][route.method.lower()]
        assert operation["operationId"] == route.operation
        assert {str(status) for status in route.answers} <= operation["responses"].keys()
        assert {"400", "403", "422", "503"} <= operation["responses"].keys()
        for status, response in operation["responses"].items():
            assert response["description"]
            if status >= "400":
                assert [*response["content"]] == ["application/problem+json"]


def test_nothing_is_closed_or_bounded_less_than_the_models_are() -> None:
    schemas = document()["components"]["schemas"]
    create = schemas["SubscriptionCreate"]
    assert create["additionalProperties"] is False
    assert create["required"] == ["url", "event_types"]
    assert "validate" in create["properties"]
    [limit] = [
        each
        for each in document()["paths"]["/v1/subscriptions"]["get"]["parameters"]
        if each["name"] == "limit"
    ]
    assert limit["schema"] == {"type": "integer", "minimum": 1, "maximum": 200, "default": 50}
