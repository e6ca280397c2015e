"""What the API says of this installation."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field

from dispatcher.api.models import (
    ReplyModel,
)
from dispatcher.api.route import Audience, Call, Reply, Route, RouteAnswer


class Egress(ReplyModel):
    """Where deliveries come from: what subscribers' firewalls have to let in."""

    addresses: Annotated[
        list[str], Field(description="Addresses or CIDR blocks; empty where nobody has configured any.")
    ]


# --- egress
async def get_egress(call: Call) -> Reply:
    return Reply(Egress(addresses=list(call.services.egress)))


ROUTES: Final[tuple[Route, ...]] = (
    Route(
        "GET",
        "/v1/egress",
        "getEgress",
        "deployment",
        "Where deliveries come from",
        Audience.TENANT,
        "read",
        {200: RouteAnswer("For subscribers' firewalls.", Egress)},
        get_egress,
    ),
)
