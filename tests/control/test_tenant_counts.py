"""How many subscriptions a tenant has: the same number as by counting, whatever happens to them."""

from __future__ import annotations

import random

from dispatcher.control.tenant_counts import TenantCounts
from dispatcher.core.request.netguard import Guard
from dispatcher.core.request.urls import Origin
from dispatcher.core.subscription.model import Status
from dispatcher.registry.registry import Registry
from dispatcher.registry.snapshot import Managed
from dispatcher.settings.groups import Settings
from tests.fakes import subscription


def registry() -> Registry:
    return Registry(Settings(), Guard(()), {})


def counted(made: Registry, tenant: str) -> int:
    return sum(each.tenant == tenant for each in made.index)


async def test_counts_follow_every_change() -> None:
    made, chance = registry(), random.Random(7)
    counts = TenantCounts(made)
    tenants, hosts = ("acme", "globex"), ("a.test", "b.test")
    for _ in range(600):
        id_ = f"s{chance.randrange(120)}"
        tenant, host = chance.choice(tenants), chance.choice(hosts)
        match chance.randrange(4):
            case 0:
                made.remove_managed(id_)
            case 1 if made.index.get(id_) is not None:
                made.disable(id_, "gone")
            case _:
                # Many patterns: more than a tenant's flat group holds.
                types = tuple(f"t{number}.x" for number in range(chance.randrange(1, 4)))
                made.put_managed(
                    subscription(id_, f"https://{host}/", tenant=tenant, event_types=types), "tag"
                )
        if chance.random() < 0.1:
            for each in tenants:
                assert counts.all(each) == counted(made, each)
                for name in hosts:
                    origin = Origin("https", name, 443)
                    assert counts.to(each, origin) == sum(
                        one.tenant == each and one.origin == origin for one in made.index
                    )
    assert counts.all("acme") > 20


async def test_what_is_loaded_at_once_is_counted_anew() -> None:
    made = registry()
    counts = TenantCounts(made)
    assert counts.all("acme") == 0
    many = {
        f"s{number}": Managed(subscription(f"s{number}", "https://a.test/", tenant="acme"), "tag")
        for number in range(300)
    }
    await made.load_managed(many, {})
    assert counts.all("acme") == 300
    assert counts.to("acme", Origin("https", "a.test", 443)) == 300
    assert counts.all("nobody") == 0


async def test_a_status_changes_no_count_and_another_url_does() -> None:
    made = registry()
    counts = TenantCounts(made)
    made.put_managed(subscription("s", "https://a.test/", tenant="acme"), "tag")
    assert counts.to("acme", Origin("https", "a.test", 443)) == 1
    made.disable("s", "gone")
    found = made.index.get("s")
    assert found is not None
    assert found.status is Status.DISABLED
    assert counts.to("acme", Origin("https", "a.test", 443)) == 1
    made.put_managed(subscription("s", "https://b.test/", tenant="acme"), "tag")
    assert counts.to("acme", Origin("https", "a.test", 443)) == 0
    assert counts.to("acme", Origin("https", "b.test", 443)) == counts.all("acme") == 1
