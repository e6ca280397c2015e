"""How deliveries to each subscription have gone lately, and since when there is nothing but failures.

Of each subscription the last attempts are kept as numbers, nothing else: what one wants to know of them (success rate,
latencies) is worked out when somebody asks, which is rare, while an attempt ends tens of thousands of times a
second. Averages that are carried on were rejected: they take longer to update than a number takes to keep, and no
percentile comes out of them.

There may be a hundred thousand subscriptions, most of them silent. So what is kept stands in two generations: who is
heard of comes into the young one, and when that is full, or has been for an hour, it becomes the old one and the old one is
forgotten. That is as good as forgetting the least recently used, and costs those in the young one nothing. Whoever keeps
somebody's health at hand knows by their `generation` whether they are still good; of those forgotten nothing large is left.

An endpoint that fails for days is given up (`disable_after`). Since when it fails must outlast this process and be known
to the others, so after some minutes it is *noted*, where all replicas see it; whoever delivers anything strikes
the note out. A note alone doesn't end a subscription: after a long silence the first failure may be a mishap, so this process must have seen
nothing but failures for some minutes itself.
"""

from __future__ import annotations

import math
from array import array
from itertools import count
from typing import Final, NamedTuple

KEPT: Final = 64
"""Attempts that are kept of each subscription."""

GENERATION: Final = 131_072
"""Subscriptions in a generation; there are two. Half a KiB each, of those that are heard of. With 65,536, and 100,000 of them
in turns, each delivery moved its own from the old ones to the young: 1 us; with 8192 it made new ones: 2 us."""

NOTED_AFTER: Final = 600.0
"""Seconds of nothing but failures that are worth noting."""

SILENCE: Final = 2 * 86400.0
"""Seconds without an attempt after which what was before says nothing any more."""

LOOK: Final = 60.0
"""Seconds between two looks at whether a subscription that is well has been noted as failing."""

_SAME: Final = 1.0  # seconds within which two times are one: a note has been by another clock
_NOTHING: Final = array("f")
_generations: Final = count(1)


class Health(NamedTuple):
    """How deliveries to one subscription go, in this process. Times in seconds."""

    success_rate: float | None = None  # of the last attempts
    latency_mean: float | None = None  # of those of them that were acknowledged
    latency_p95: float | None = None
    breaker: str | None = None  # closed, open, half-open
    queued: int = 0
    in_flight: int = 0
    last_failure: str | None = None
    last_failure_at: float | None = (
        None  # of the same clock as the attempts; `Endpoints.health` makes Unix seconds of it
    )
    attempts: int = 0  # the last ones, that all of this is of
    failing_since: float | None = None  # nothing else, in this process; the clock as with `last_failure_at`


class Streak(NamedTuple):
    """Nothing but failures, up to the one just told. Times as `EndpointHealth` has them."""

    since: float
    own: float
    """Since when this process has seen nothing else."""
    struck: bool
    """The note that there was is out of date: something was delivered after it."""
    worth_noting: bool
    """All replicas should know of `since`."""


class EndpointHealth:
    """One subscription's last attempts. Times are seconds of one clock, which is never set (the loop's)."""

    __slots__ = (
        "_attempts",
        "_count",
        "_failing",
        "_fresh0",
        "_fresh1",
        "_fresh2",
        "_known",
        "_look_at",
        "_well_at",
        "generation",
        "last_failure",
        "last_failure_at",
        "tenant",
    )

    def __init__(self, tenant: str | None) -> None:
        """`tenant` is whose subscription this is: an id may go to another one."""
        # What every success looks at comes first: compiled, it is side by side in memory.
        self.generation = 0  # of the registry, that this is among the young of; kept by the registry
        self._count = 0
        # The attempts since the last multiple of four. With 100,000 subscriptions in turns the array is two ways to distant
        # memory, and so it is only gone to once in four times.
        self._fresh0 = 0.0
        self._fresh1 = 0.0
        self._fresh2 = 0.0
        self._well_at = -math.inf
        self._look_at = 0.0
        self._failing: float | None = None  # since when, in this process
        self._known = False  # whether that had been noted when it failed last
        self._attempts = array("f")  # seconds that each took, of those that failed negative; the last KEPT
        self.tenant = tenant
        self.last_failure: str | None = None
        self.last_failure_at = 0.0

    def prefetch(self) -> int:
        """Bring what is used first into the CPU's caches (`delivery/sending.py`)."""
        return self._count

    @property
    def failing(self) -> bool:
        """Whether the last attempt failed."""
        return self._failing is not None

    def succeeded(self, seconds: float, now: float) -> bool:
        """An attempt was acknowledged after so many `seconds`; whether a note of failures would have to be struck out."""
        self._keep(seconds)
        self._well_at = now
        if now < self._look_at:
            return False
        self._failing = None
        self._known = False
        self._look_at = now + LOOK
        return True

    @property
    def well_at(self) -> float:
        """When an attempt was acknowledged last; minus infinity if none was."""
        return self._well_at

    def recovered_elsewhere(self, at: float) -> bool:
        """Another process has had something acknowledged `at` that time; whether that ends the failures that this one has seen."""
        if self._failing is None or self.last_failure_at > at:
            return False
        self._failing = None
        self._known = False
        return True

    def failed(
        self, seconds: float, what: str, now: float, noted: float | None, patience: float, silence: float
    ) -> Streak:
        """An attempt failed for a reason that lies with the endpoint.

        `noted` is since when it fails as far as anybody has noted that. After `patience` seconds it is worth noting; after
        `silence` without any attempt this process begins anew.
        """
        self._keep(-max(seconds, 1e-9))
        struck = noted is not None and noted <= self._well_at
        if (
            self._failing is None
            or (self._known and noted is None)  # another replica has delivered something
            or now - self.last_failure_at > silence
        ):
            self._failing = now
        own = self._failing
        self.last_failure = what
        self.last_failure_at = now
        self._look_at = 0.0
        if struck:
            noted = None
        since = own if noted is None else min(own, noted)
        worth = now - own >= patience and (noted is None or since < noted - _SAME)
        self._known = worth or noted is not None
        return Streak(since, own, struck, worth)

    def _keep(self, seconds: float) -> None:
        before = self._count
        self._count = before + 1
        match before & 3:
            case 0:
                self._fresh0 = seconds
            case 1:
                self._fresh1 = seconds
            case 2:
                self._fresh2 = seconds
            case _:
                four = (self._fresh0, self._fresh1, self._fresh2, seconds)
                if before < KEPT:
                    self._attempts.extend(four)
                else:
                    at = before % KEPT - 3  # KEPT is a multiple of four
                    for each in four:
                        self._attempts[at] = each
                        at += 1

    def _kept(self) -> list[float]:
        """All of them, in no order."""
        kept = list(self._attempts)
        fresh = (self._fresh0, self._fresh1, self._fresh2)[: self._count & 3]
        begin = (self._count & ~3) % KEPT if self._count >= KEPT else len(kept)
        kept[begin : begin + len(fresh)] = fresh  # instead of the eldest
        return kept

    def fade(self) -> None:
        """Forgotten: who still has this at hand shall not have much."""
        self.generation = 0
        self._count = 0
        self._attempts = _NOTHING

    def health(self, breaker: str, queued: int, in_flight: int) -> Health:
        """What the last attempts say."""
        kept = self._kept()
        times = sorted(seconds for seconds in kept if seconds >= 0)
        total = len(kept)
        return Health(
            success_rate=len(times) / total if total else None,
            latency_mean=sum(times) / len(times) if times else None,
            latency_p95=times[(len(times) * 95 + 99) // 100 - 1] if times else None,
            breaker=breaker,
            queued=queued,
            in_flight=in_flight,
            last_failure=self.last_failure,
            last_failure_at=self.last_failure_at if self.last_failure is not None else None,
            attempts=total,
        )


class HealthRegistry:
    """The health of the subscriptions that were heard of lately.

    Whoever keeps what `admit` returned may go on using it, without asking again, while its `generation` is the registry's: no
    other registry of the process has the same.
    """

    __slots__ = ("_old", "_size", "_young", "generation")

    def __init__(self, size: int = GENERATION) -> None:
        """`size` is how many a generation has."""
        self.generation = next(_generations)
        self._young: dict[str, EndpointHealth] = {}
        self._old: dict[str, EndpointHealth] = {}
        self._size = size

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def find(self, key: str) -> EndpointHealth | None:
        """Whoever asks is not heard of by that."""
        found = self._young.get(key)
        return self._old.get(key) if found is None else found

    def admit(self, key: str, tenant: str | None) -> EndpointHealth:
        """Those of a subscription that is heard of: from now on it is among the young. What was of another tenant's is forgotten."""
        health = self._young.get(key)
        if health is not None and health.tenant == tenant:
            return health
        if health is None:
            health = self._old.pop(key, None)
        if health is not None and health.tenant != tenant:
            health.fade()
            health = None
        if health is None:
            health = EndpointHealth(tenant)
        if len(self._young) >= self._size:
            for forgotten in self._old.values():
                forgotten.fade()
            self._old = self._young
            self._rejuvenate()
        health.generation = self.generation
        self._young[key] = health
        return health

    def _rejuvenate(self) -> None:
        self._young = {}
        self.generation = next(_generations)

    def forget(self, key: str) -> None:
        """The id went to somebody else."""
        for generation in (self._young, self._old):
            health = generation.pop(key, None)
            if health is not None:
                health.fade()

    def age(self) -> None:
        """Some time has gone by: forget who was silent for all of it, but for those whose last attempt failed."""
        failing = [(key, health) for key, health in self._old.items() if health.failing]
        kept = dict(failing[-(self._size - len(self._young)) :] if len(self._young) < self._size else ())
        for key, forgotten in self._old.items():
            if key not in kept:
                forgotten.fade()
        kept.update(self._young)
        self._old = kept
        self._rejuvenate()
