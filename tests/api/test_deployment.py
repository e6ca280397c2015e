"""What the API says of the installation."""

from __future__ import annotations

from tests.api.serving import KEY, serving


async def test_where_deliveries_come_from_is_told_to_whoever_has_a_key() -> None:
    async with serving(KEY) as (call, _):
        assert (await call("GET", "/v1/egress")).json == {"addresses": ["192.0.2.7/32"]}
        assert (await call.using(None)("GET", "/v1/egress")).status == 401
