"""What a schedule may have beside its faults: traits, drawn from the same seed or asked for by name.

A trait changes what is owed to whom, or what becomes of topics and subscriptions in mid-run. Traits that change the
same thing exclude each other (`_APART`); all others may come together, and with every fault.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import StrEnum


class Trait(StrEnum):
    FANOUT = "fanout"  # each event is owed hundreds of times, once to an endpoint that fails
    TENANTS = "tenants"  # thousands of tenants, three subscriptions each, one of them on a host that fails
    LATEST = "latest"  # the group begins at the end, and most partitions stay silent at first
    PARTITIONS = "partitions"  # the event topic gets more partitions
    ANEW = "anew"  # a second event topic is deleted and made again
    STALLS = "stalls"  # one endpoint hangs for seconds, has more to do than the others, and is well again
    RETENTION = "retention"  # records of event and retry topics are deleted before they are read
    PAUSE = "pause"  # subscriptions are paused and resumed, in the file and through the API
    ODD = "odd"  # records that are no events, that can't be unpacked, and events without a value
    ALONE = "alone"  # one replica with a deployment's session timeout, killed again and again
    HISTORY = "history"  # at the end the history is compared with what the endpoints say, thrown away, and made again


_APART = (
    {Trait.FANOUT, Trait.TENANTS, Trait.STALLS},  # each decides how much is owed
    {Trait.ALONE, Trait.PARTITIONS, Trait.ANEW},  # what has to be noticed is noticed by whoever joins
)

ON_KAFKA = tuple(Trait)
REPLICATED = (
    Trait.FANOUT,
    Trait.TENANTS,
    Trait.LATEST,
    Trait.PARTITIONS,
    Trait.ANEW,
    Trait.STALLS,
    Trait.PAUSE,
    Trait.HISTORY,
)
EMBEDDED = (Trait.FANOUT, Trait.TENANTS, Trait.STALLS, Trait.PAUSE, Trait.HISTORY)


class Act(StrEnum):
    """What is done once, in mid-run, because of a trait."""

    ADD = "add"  # partitions, up to `number`
    ANEW = "anew"  # delete the second topic, wait for `lasts`, and make it again with `number` partitions
    STALL = "stall"  # for `lasts`
    EXPIRE = "expire"  # delete the records of partition `number` of an event topic
    FORGET = "forget"  # delete the records of partition `number` of every retry topic
    PAUSE = "pause"  # a subscription for `lasts`: `number` says which one and how


@dataclass(frozen=True, slots=True)
class Turn:
    at: float
    act: Act
    number: int = 0
    lasts: float = 0.0

    def __str__(self) -> str:
        return f"{self.act}{self.number}@{self.at:.1f}" + (f"+{self.lasts:.1f}" if self.lasts else "")


def fit(traits: Collection[Trait]) -> bool:
    """Whether these may come together."""
    return all(len(apart.intersection(traits)) <= 1 for apart in _APART)


def draw_traits(draw: random.Random, among: Iterable[Trait]) -> frozenset[Trait]:
    """One to three that fit together."""
    left = list(among)
    draw.shuffle(left)
    wanted = draw.choice((1, 1, 2, 3))
    found: set[Trait] = set()
    for trait in left:
        if len(found) < wanted and fit({*found, trait}):
            found.add(trait)
    return frozenset(found)


def turns(draw: random.Random, traits: Collection[Trait], length: float) -> list[Turn]:
    """What is done when, within `length` seconds."""
    found: list[Turn] = []

    def some(act: Act, times: int, number: tuple[int, ...], lasts: tuple[float, float] = (0.0, 0.0)) -> None:
        found.extend(
            Turn(
                round(draw.uniform(0.15, 0.85) * length, 2),
                act,
                draw.choice(number),
                round(draw.uniform(*lasts), 2),
            )
            for _ in range(times)
        )

    if Trait.PARTITIONS in traits:
        some(Act.ADD, 1, (5, 6, 8))
    if Trait.ANEW in traits:
        some(Act.ANEW, 1, (1, 2, 4), (0.0, 3.0))
    if Trait.STALLS in traits:
        some(Act.STALL, draw.choice((1, 2)), (0,), (2.0, 12.0))
    if Trait.RETENTION in traits:
        some(Act.EXPIRE, 2, (0, 1, 2, 3))
        some(Act.FORGET, draw.choice((0, 1, 2)), (0, 1, 2, 3))
    if Trait.PAUSE in traits:
        some(Act.PAUSE, draw.choice((1, 2, 3)), (0, 1, 2, 3), (1.0, 8.0))
    return sorted(found, key=lambda each: each.at)
