"""The list of routes."""

from __future__ import annotations

from dispatcher.api.frame import PARAMETERS
from dispatcher.api.route import Audience
from dispatcher.api.table import ROUTES


def test_no_address_and_no_operation_stands_twice() -> None:
    assert len({(route.method, route.path) for route in ROUTES}) == len(ROUTES)
    assert len({route.operation for route in ROUTES}) == len(ROUTES)


def test_every_part_of_an_address_has_a_form() -> None:
    for route in ROUTES:
        for part in route.path.split("/"):
            assert not part.startswith("{") or (route.tag, part[1:-1]) in PARAMETERS


def test_every_route_of_tenants_says_what_their_keys_need() -> None:
    for route in ROUTES:
        own = route.operation == "renewPortalSession"  # a session's own: nothing is needed beside its token
        assert (route.needs is not None) == (route.allowed is Audience.TENANT and not own)


def test_what_takes_no_body_says_so_and_what_changes_something_says_who_may() -> None:
    for route in ROUTES:
        assert route.body is None or route.method in {"POST", "PUT", "PATCH"}
        assert route.method == "GET" or route.from_page or route.allowed.value != "public"
