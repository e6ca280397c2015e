"""Pages and filters."""

from __future__ import annotations

from typing import Any

import pytest

from dispatcher.control.errors import (
    Invalid,
)
from tests.control.conftest import IN_FILE, Make, Plane

pytestmark = [pytest.mark.looptime]


async def test_pages_cover_everything_once_in_order_while_things_come_and_go(make: Make) -> None:
    plane = await make([{**IN_FILE, "id": f"sub_{n:03}f"} for n in range(10)])
    for number in range(10):
        await plane.create(id=f"sub_{number:03}")
    seen: list[str] = []
    cursor = None
    while True:
        page = plane.listing.page(tenant=None, cursor=cursor, limit=3)
        seen += [view.id for view in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break
        if len(seen) == 6:
            await plane.subscriptions.delete(seen[0] if not seen[0].endswith("f") else seen[1], tenant=None)
            await plane.create(id="sub_000_behind")
            await plane.create(id="sub_999_ahead")
    assert seen == sorted(set(seen))
    assert len(seen) == 21
    assert seen[-1] == "sub_999_ahead"


async def test_a_cursor_or_a_filter_that_makes_no_sense_is_refused(plane: Plane) -> None:
    for query in ({"cursor": "%%%"}, {"cursor": "é"}, {"limit": 0}, {"limit": 201}, {"status": "odd"}):
        with pytest.raises(Invalid):
            plane.listing.page(tenant=None, **query)


async def test_filters_pick_what_fits_all_of_them(make: Make) -> None:
    plane = await make([IN_FILE])
    await plane.create(id="a", tenant="acme", event_types=["invoice.*"], url="https://one.example/")
    await plane.create(id="b", tenant="acme", event_types=["other.*"], status="paused")
    await plane.create(id="c", event_types=["*"], url="https://ONE.example:8443/")

    def ids(tenant: str | None = None, **query: Any) -> list[str]:
        return [view.id for view in plane.listing.page(tenant=tenant, **query).items]

    assert ids() == ["a", "b", "c", "sub_file"]
    assert ids(of_tenant="acme") == ids("acme") == ["a", "b", "sub_file"]
    assert ids(status="paused") == ["b"]
    assert ids(event_type="invoice.paid") == ["a", "c", "sub_file"]
    assert ids(host="One.Example") == ["a", "c"]
    assert ids("acme", event_type="invoice.paid", host="one.example") == ["a"]
    assert ids(of_tenant="nobody") == []


async def test_a_page_looks_at_so_many_and_no_more_and_at_a_tenants_own_only(plane: Plane) -> None:
    """No time is asserted; what is, is that no page looks at all of them."""
    await plane.store.fill(12_500, tenants=2500)
    page = plane.listing.page(tenant=None, host="nowhere.example")
    assert page.items == []
    assert page.next_cursor is not None  # there is more to look at
    page = plane.listing.page(tenant=None, host="nowhere.example", cursor=page.next_cursor)
    assert page.next_cursor is None
    mine = plane.listing.page(tenant="t7")
    assert [view.id for view in mine.items] == [f"s{n:06}" for n in range(7, 12_500, 2500)]
    assert mine.next_cursor is None
    # Showing one is work, too: one tenant's among many of others end a page before its number does.
    await plane.store.fill(12_500, tenants=50)
    first = plane.listing.page(tenant="t7", limit=200)
    assert 100 < len(first.items) < 200
    second = plane.listing.page(tenant="t7", limit=200, cursor=first.next_cursor)
    assert [view.id for view in (*first.items, *second.items)] == [f"s{n:06}" for n in range(7, 12_500, 50)]
    assert second.next_cursor is None
