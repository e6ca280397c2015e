"""Who is subscribed in a run, and who is owed an event.

The four of every run want events of each tenant: `sub_steady`, `sub_flaky`, `sub_picky` and `sub_moody`. Traits add
others: hundreds more on the steady endpoint, thousands of tenants with three each (two on the steady endpoint, one on the
moody one), one on the endpoint that stalls, one that is made through the API.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from tests.e2e.daemon import SECRET
from tests.torture.ledger import Debt
from tests.torture.traits import Trait

EVENT = "test.event"
BURST = "burst.event"
"""What only the endpoint that stalls is owed."""
BY_API = "sub_api"
STALLING = "sub_stall"
PICKY = "sub_picky"
PAUSABLE = ("sub_moody", "sub_flaky", "sub_steady")
"""Of the file's, those that are paused in mid-run."""


class Published(NamedTuple):
    """One event as it was handed to the broker."""

    id: str
    at: float  # the loop's time before it was written
    type: str = EVENT
    tenant: str | None = None
    owed: bool = True  # False: from before the beginning, nobody is to get it


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many of each a seed has."""

    fan: int = 0
    tenants: int = 0
    patience: float = 5.0  # the timeout of attempts at the endpoint that stalls

    @classmethod
    def of(cls, seed: int, traits: Collection[Trait]) -> Sizes:
        draw = random.Random(f"sizes {seed}")
        fan, tenants, patience = (
            draw.choice((200, 400, 1000)),
            draw.choice((1000, 3000)),
            draw.choice((5.0, 15.0)),
        )
        return cls(fan if Trait.FANOUT in traits else 0, tenants if Trait.TENANTS in traits else 0, patience)


class Subscribers:
    """The subscriptions of a run. What is paused in the file is noted here."""

    def __init__(
        self, seed: int, traits: Collection[Trait], ports: Mapping[str, int], timeout: float
    ) -> None:
        self.sizes = Sizes.of(seed, traits)
        self.paused: set[str] = set()
        self._ports = ports
        self._timeout = timeout
        self._patient = {"schedule": ["200ms", "500ms", "1s", *["2s"] * 60], "jitter": 0.1}
        stalls = Trait.STALLS in traits
        everyone = ["*"] if not stalls else [EVENT]
        self._entries = [
            self._entry("sub_steady", "steady", everyone),
            self._entry("sub_flaky", "flaky", everyone),
            {
                **self._entry(PICKY, "picky", everyone),
                "retry": {"schedule": ["200ms"], "jitter": 0},
            },
            self._entry("sub_moody", "moody", everyone),
        ]
        self._entries += [self._entry(f"fan_{n}", "steady", [EVENT]) for n in range(self.sizes.fan)]
        if stalls:
            self._entries.append(
                {**self._entry(STALLING, "stall", ["*"]), "timeout": f"{self.sizes.patience:g}s"}
            )
        self._of_all: defaultdict[str, list[str]] = defaultdict(list)
        for entry in self._entries:
            for type_ in (EVENT, BURST):
                if entry["event_types"] in (["*"], [type_]):
                    self._of_all[type_].append(entry["id"])
        self._of_tenant: dict[str, list[str]] = {}
        for number in range(self.sizes.tenants):
            tenant = f"t{number}"
            own = [
                self._entry(f"{tenant}_{letter}", endpoint, [EVENT], tenant)
                for letter, endpoint in (("a", "steady"), ("b", "steady"), ("c", "moody"))
            ]
            self._of_tenant[tenant] = [entry["id"] for entry in own]
            self._entries += own
        self.with_api = False

    def _entry(self, id_: str, endpoint: str, types: Sequence[str], tenant: str = "*") -> dict[str, Any]:
        return {
            "id": id_,
            "tenant": tenant,
            "url": f"http://127.0.0.1:{self._ports[endpoint]}/{endpoint}/{id_}",
            "event_types": list(types),
            "timeout": f"{self._timeout:g}s",
            "retry": self._patient,
        }

    def by_api(self) -> dict[str, Any]:
        """The one that is made through the API, on the flaky endpoint."""
        return self._entry(BY_API, "flaky", [EVENT])

    def tenant_of(self, number: int) -> str | None:
        """Whose event the one of that number is."""
        return f"t{number * 7919 % self.sizes.tenants}" if self.sizes.tenants else None

    def owed(self, event: Published) -> list[Debt]:
        owners = self._of_all[event.type] + self._of_tenant.get(event.tenant or "", [])
        if self.with_api and event.type == EVENT:
            owners = [*owners, BY_API]
        return [(owner, event.id) for owner in owners]

    def write(self, file: Path) -> None:
        """The file as the daemon reads it: JSON is YAML too, and thousands of entries are written at once."""
        document = {
            "subscriptions": [
                {
                    "secrets": [SECRET],
                    "status": "paused" if entry["id"] in self.paused else "active",
                    **entry,
                }
                for entry in self._entries
            ]
        }
        new = file.with_suffix(".new")
        new.write_bytes(orjson.dumps(document))
        new.replace(file)
