"""Keys over HTTP, on the whole dispatcher."""

from __future__ import annotations

from pathlib import Path

from tests.api.real import made, running
from tests.api.serving import KEY, serving


async def test_the_first_operators_key_closes_the_api_for_good(tmp_path: Path) -> None:
    async with running(tmp_path) as (call, _):
        key = made(await call("POST", "/v1/keys", {"name": "ops", "scope": "operator"}))
        assert (await call("GET", "/v1/keys")).status == 401
    async with running(tmp_path) as (call, _):
        assert (await call("GET", "/v1/keys")).status == 401
        operator = call.using(key["secret"])
        assert (await operator("DELETE", f"/v1/keys/{key['key']['id']}")).status == 204
        assert (await call("GET", "/v1/keys")).status == 200


async def test_a_key_is_shown_in_full_once_and_wrong_from_its_revocation_on() -> None:
    async with serving(KEY) as (call, _):
        new = {"name": "acme", "scope": "tenant", "tenant": "acme"}
        made = await call("POST", "/v1/keys", new)
        key, secret = made.json["key"], made.json["secret"]
        assert made.headers["Location"] == f"/v1/keys/{key['id']}"
        assert (key["name"], key["scope"], key["tenant"], key["created_by"]) == (
            "acme",
            "tenant",
            "acme",
            "settings",
        )
        assert (await call("GET", "/v1/keys")).json == {"keys": [key]}
        assert secret not in str((await call("GET", "/v1/keys")).body)
        assert (await call.using(secret)("GET", "/v1/egress")).status == 200
        assert (await call("DELETE", f"/v1/keys/{key['id']}")).status == 204
        assert (await call.using(secret)("GET", "/v1/egress")).status == 401
        assert (await call("DELETE", f"/v1/keys/{key['id']}")).status == 404
