"""Matching among a million subscriptions of 100,000 tenants: time per match, to build, to change one; memory.

CPU time, so that what else runs on the machine counts for less. The bars (docs/architecture.md): a match after first use under 2 us, the index built in under 30 s.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

from dispatcher.core.request.urls import Origin
from dispatcher.core.retry.policy import RetryPolicy
from dispatcher.core.subscription.index import Index
from dispatcher.core.subscription.model import Status, Subscription

_NOUNS = ("invoice", "customer", "subscription", "payment", "refund", "order", "shipment", "user")
_VERBS = ("created", "updated", "deleted", "paid")
TYPES = tuple(f"{space}.{noun}.{verb}" for space in ("billing", "shop") for noun in _NOUNS for verb in _VERBS)
# What people write: mostly wildcards below a namespace, some exact types, few that want everything.
PATTERNS = (
    ("billing.*",),
    ("shop.*",),
    ("billing.invoice.*", "billing.payment.paid"),
    ("shop.order.created", "shop.order.updated", "shop.shipment.*"),
    ("*.invoice.paid",),
    ("billing.customer.deleted",),
    ("shop.user.*",),
    ("billing.refund.created", "billing.refund.updated"),
    ("*",),
    ("shop.*.created",),
)


def rss() -> int:
    """Resident bytes now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def subscriptions(count: int, tenants: int) -> list[Subscription]:
    """As `spec.Reader` makes them: equal parts shared, a secret and a path of their own."""
    retry = RetryPolicy((5.0, 300.0, 1800.0, 7200.0), 0.1)
    names = [f"tenant_{number:06d}" for number in range(tenants)]
    origins = [Origin("https", f"hooks-{number}.example.com", 443) for number in range(tenants)]
    signatures = ("v1",)
    return [
        Subscription(
            id=f"sub_{number:07d}",
            tenant=names[number % tenants],
            origin=origins[number % tenants],
            target=f"/webhooks/{number}",
            event_types=PATTERNS[number // tenants % len(PATTERNS)],
            secrets=(f"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2L{number:07d}",),
            signatures=signatures,
            headers=(),
            thin=False,
            timeout=15.0,
            max_in_flight=16,
            retry=retry,
            status=Status.ACTIVE,
        )
        for number in range(count)
    ]


def per_call(run: Callable[[str, str], object], keys: list[tuple[str, str]]) -> float:
    """Microseconds a call, the loop's own cost taken off."""

    def nothing(tenant: str, kind: str) -> None:
        pass

    def loop(function: Callable[[str, str], object]) -> float:
        begin = time.thread_time()
        for tenant, kind in keys:
            function(tenant, kind)
        return time.thread_time() - begin

    return (loop(run) - loop(nothing)) / len(keys) * 1e6


def fresh(keys: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The same keys as new strings, as decoding a record makes them: nothing of them is hashed or in a cache."""
    return [(tenant.encode().decode(), kind.encode().decode()) for tenant, kind in keys]


def main(count: int = 1_000_000, tenants: int = 100_000, matches: int = 200_000) -> None:
    """Print the figures; takes about half a minute and 1 GB for the default size."""
    chance = random.Random(7)
    gc.disable()  # as in the daemon, which freezes what is there before it starts
    begin, before = time.thread_time(), rss()
    made = subscriptions(count, tenants)
    objects = rss() - before
    print(f"{count:,} subscriptions of {tenants:,} tenants")
    print(f"  objects          {time.thread_time() - begin:8.2f} s   {objects / count:7.0f} B each")
    begin, before = time.thread_time(), rss()
    index = Index(made)
    print(f"  index            {time.thread_time() - begin:8.2f} s   {(rss() - before) / count:7.0f} B each")
    del made
    before = rss()

    def keys(number: int, among: int) -> list[tuple[str, str]]:
        return [(f"tenant_{chance.randrange(among):06d}", chance.choice(TYPES)) for _ in range(number)]

    everywhere = keys(matches, tenants)
    print(f"  first match      {per_call(index.match, fresh(everywhere)):8.2f} us  (the answer is derived)")
    print(
        f"  match, spread    {per_call(index.match, fresh(everywhere)):8.2f} us  (known, cold in the CPU's caches)"
    )
    print(f"  answers          {(rss() - before) / max(index._kept, 1):8.0f} B each, {index._kept:,} kept")
    near = keys(matches, min(1000, tenants))
    per_call(index.match, near)
    print(f"  match, hot       {per_call(index.match, fresh(near)):8.2f} us  (1,000 tenants)")
    flood = [(f"tenant_{chance.randrange(tenants):06d}", f"x.y{number}") for number in range(2 * matches)]
    print(
        f"  never seen types {per_call(index.match, flood):8.2f} us  (the bound on answers at work, {index._kept:,} kept)"
    )
    strangers = [(f"nobody_{number}", chance.choice(TYPES)) for number in range(matches)]
    print(f"  unknown tenants  {per_call(index.match, strangers):8.2f} us")

    changes = [f"sub_{chance.randrange(count):07d}" for _ in range(2000)]
    begin = time.thread_time()
    for id_ in changes:
        old = index.get(id_)
        assert old is not None
        index = index.replaced(old.with_status(Status.DISABLED, "gone"))
    print(f"  disable one      {(time.thread_time() - begin) / len(changes) * 1e6:8.2f} us")
    begin = time.thread_time()
    for id_ in set(changes):
        index = index.without(id_)
    print(f"  delete one       {(time.thread_time() - begin) / len(set(changes)) * 1e6:8.2f} us")

    big = Index(subscriptions(min(count, 200_000), 1))
    one = [("tenant_000000", "nothing.wants.this" + str(number)) for number in range(200)]
    print(
        f"  one tenant with {len(big):,}: a match of {len(big.match(*one[0])):,} is derived in {per_call(big.match, one[1:]):,.0f} us"
    )
    gc.enable()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--tenants", type=int, default=100_000)
    main(**vars(parser.parse_args()))
