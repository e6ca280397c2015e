"""What goes wrong when: drawn from a seed, so that a run which found something can be made again.

The seed fixes the faults, their times and lengths, the endpoints' moods and the daemons' caps. It can't fix
how the processes' threads of time interleave: a seed that found something once may need a few runs to find it again.

About half of the schedules leave the daemons' delivery settings as they come: breakers open and what would wait too long is parked. The others
attempt everything all the time, which puts more under way when a fault strikes.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from tests.torture.subscribers import Sizes
from tests.torture.traits import (
    EMBEDDED,
    ON_KAFKA,
    REPLICATED,
    Act,
    Trait,
    Turn,
    draw_traits,
    turns,
)


class Kind(StrEnum):
    KILL = "kill"  # kill -9 a replica, start it again after `lasts`
    TERM = "term"  # SIGTERM, and start it again `lasts` after its end
    STOP = "stop"  # SIGSTOP for longer than the session, now and then for half a minute, then SIGCONT
    BROKER = "broker"  # kill -9 the broker, start it again after `lasts`
    CUT = "cut"  # between one replica and the broker: connections reset, new ones refused
    STALL = "stall"  # the same, but connections stay open and silent
    FULL = "full"  # no room on the disk of the embedded broker


class Mood(StrEnum):
    FAIL = "fail"  # 503
    CHOOSE = "choose"  # 503 to every other event
    HANG = "hang"  # no answer within any timeout
    DOWN = "down"  # connections reset and refused


@dataclass(frozen=True, slots=True)
class Fault:
    at: float
    kind: Kind
    target: int
    lasts: float

    def __str__(self) -> str:
        return f"{self.kind}{self.target}@{self.at:.1f}+{self.lasts:.1f}"


@dataclass(frozen=True, slots=True)
class Phase:
    """A mood of the moody endpoint."""

    at: float
    mood: Mood
    lasts: float

    def __str__(self) -> str:
        return f"{self.mood}@{self.at:.1f}+{self.lasts:.1f}"


@dataclass(frozen=True, slots=True)
class Schedule:
    seed: int
    events: int
    length: float
    max_in_flight: int
    horizon: float  # seconds; what waits longer than this for its retry is in a tier
    replicas: int
    faults: Sequence[Fault]
    phases: Sequence[Phase]
    parking: bool = False  # the daemons' own breakers and limit of waiting are on
    hold_limit: float = 15.0
    timeout: float = 5.0
    bursts: int = 0  # more events, which only the endpoint that stalls is owed
    traits: frozenset[Trait] = frozenset()
    turns: Sequence[Turn] = ()
    embedded: bool = False  # each fault ends a life of the one process

    def __str__(self) -> str:
        return (
            f"{self.events} events, cap {self.max_in_flight}, horizon {self.horizon:g}, hold limit {self.hold_limit:g}, "
            f"{'breakers and parking on' if self.parking else 'no breakers, no parking'}, {self.replicas} at first; "
            f"{' '.join(map(str, self.faults)) or 'no faults'}; endpoint {' '.join(map(str, self.phases)) or 'well'}"
            + (f"; {', '.join(sorted(self.traits))}: {' '.join(map(str, self.turns))}" if self.traits else "")
        )


_WEIGHTS = {Kind.KILL: 5, Kind.TERM: 3, Kind.STOP: 3, Kind.BROKER: 3, Kind.CUT: 3, Kind.STALL: 3}
_LASTS = {
    Kind.KILL: (0.0, 8.0),
    Kind.TERM: (0.0, 4.0),
    Kind.STOP: (7.5, 10.0),
    Kind.BROKER: (0.5, 8.0),
    Kind.CUT: (0.5, 10.0),
    Kind.STALL: (1.0, 12.0),
}
_EMBEDDED = {Kind.KILL: 5, Kind.TERM: 2, Kind.FULL: 2}
_FROZEN = 30.0
_FROZEN_SHARE = 0.1  # of the schedules have a stop of that length: it makes them longer
_COMPARED_SHARE = 0.3  # of those that draw their traits have their history compared


def plan(seed: int, *, length: float = 20.0, rate: float = 60.0) -> Schedule:
    """Two replicas on Kafka. Faults of different targets overlap; those of one follow each other."""
    draw = random.Random(f"kafka {seed}")
    faults: list[Fault] = []
    at = draw.uniform(0.5, 3.0)
    while at < length:
        kind = draw.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
        if kind is Kind.BROKER and any(fault.kind is kind for fault in faults):
            kind = Kind.KILL  # a broker takes seconds to start: once a run is enough
        faults.append(Fault(round(at, 2), kind, draw.randrange(2), round(draw.uniform(*_LASTS[kind]), 2)))
        at += draw.choice((draw.uniform(0.0, 1.5), draw.uniform(2.0, 8.0)))
    schedule = Schedule(
        seed,
        round(length * rate),
        length,
        draw.choice((150, 1000, 10_000)),
        draw.choice((1.0, 10.0)),
        draw.choice((1, 2, 2)),
        faults,
        _phases(draw, length),
    )
    return _frozen(_isolated(schedule, "kafka"), "kafka")


def plan_replicated(seed: int, *, length: float = 20.0, rate: float = 60.0) -> Schedule:
    """Two replicas on three brokers, of which one at a time is away; the topics have three copies."""
    draw = random.Random(f"replicated {seed}")
    faults: list[Fault] = []
    away = draw.uniform(1.0, 4.0)
    while away < length:
        lasts = draw.uniform(3.0, 8.0)
        faults.append(Fault(round(away, 2), Kind.BROKER, draw.randrange(3), round(lasts, 2)))
        away += lasts + draw.uniform(8.0, 12.0)  # the node that was away catches up first
    at = draw.uniform(0.5, 4.0)
    while at < length:
        kind = draw.choice((Kind.KILL, Kind.TERM, Kind.STOP))
        faults.append(Fault(round(at, 2), kind, draw.randrange(2), round(draw.uniform(*_LASTS[kind]), 2)))
        at += draw.uniform(2.0, 8.0)
    schedule = Schedule(
        seed,
        round(length * rate),
        length,
        draw.choice((150, 1000, 10_000)),
        draw.choice((1.0, 10.0)),
        2,
        sorted(faults, key=lambda each: each.at),
        _phases(draw, length),
    )
    return _frozen(_isolated(schedule, "replicated"), "replicated")


def plan_quiet(seed: int, *, length: float = 20.0, rate: float = 60.0) -> Schedule:
    """No fault at all, and so no duplicate: what the other numbers are compared with."""
    draw = random.Random(f"quiet {seed}")
    return Schedule(seed, round(length * rate), length, 1000, 10.0, 1, (), _phases(draw, length))


def plan_embedded(seed: int, *, rounds: int = 6, rate: float = 60.0) -> Schedule:
    """One replica on SQLite, round after round: write, start, and `at` seconds later the fault."""
    draw = random.Random(f"embedded {seed}")
    faults = []
    for _ in range(rounds):
        kind = draw.choices(list(_EMBEDDED), list(_EMBEDDED.values()))[0]
        faults.append(Fault(round(draw.uniform(0.7, 3.0), 2), kind, 0, round(draw.uniform(0.5, 3.0), 2)))
    length = sum(fault.at for fault in faults)
    schedule = Schedule(
        seed,
        round(length * rate),
        length,
        draw.choice((150, 1000, 10_000)),
        draw.choice((1.0, 10.0)),
        1,
        faults,
        _phases(draw, length),
        embedded=True,
    )
    return _isolated(schedule, "embedded")


def plan_mutant(horizon: float) -> Schedule:
    """Short and merciless: one endpoint fails throughout, and the daemon is killed when commits had all the time they need."""
    return Schedule(
        0, 60, 4.0, 1000, horizon, 1, [Fault(4.0, Kind.KILL, 0, 0.0)], [Phase(0.0, Mood.CHOOSE, 600.0)]
    )


def plan_trait(trait: Trait) -> Schedule:
    """The shortest on which a daemon that does wrong by that trait is found, and one that does right passes."""
    well = Schedule(3, 120, 6.0, 1000, 10.0, 1, (), ())  # a seed of 200 subscriptions, 1,000 tenants
    ill = [Phase(0.1, Mood.CHOOSE, 600.0)]
    found = {
        # Killed when all that could be acknowledged was, long before.
        Trait.FANOUT: replace(well, events=20, faults=[Fault(12.0, Kind.KILL, 0, 0.0)], phases=ill),
        Trait.TENANTS: replace(well, faults=[Fault(8.0, Kind.KILL, 0, 0.0)], phases=ill),
        # Away while partitions that were silent get their first events.
        Trait.LATEST: replace(well, faults=[Fault(2.5, Kind.TERM, 0, 3.0)]),
        Trait.PARTITIONS: replace(well, turns=[Turn(1.5, Act.ADD, 8)]),
        Trait.ANEW: replace(well, turns=[Turn(1.5, Act.ANEW, 2)]),
        Trait.STALLS: replace(
            well,
            length=8.0,
            parking=True,
            horizon=5.0,
            hold_limit=60.0,
            max_in_flight=10_000,
            bursts=800,
            faults=[Fault(25.0, Kind.TERM, 0, 0.0)],
            turns=[Turn(2.0, Act.STALL, 0, 3.5)],
        ),
        # Frozen while what comes is deleted.
        Trait.RETENTION: replace(
            well, faults=[Fault(1.0, Kind.STOP, 0, 4.0)], turns=[Turn(3.5, Act.EXPIRE, 0)]
        ),
        Trait.PAUSE: replace(
            well,
            phases=[Phase(0.1, Mood.FAIL, 600.0)],
            faults=[Fault(12.0, Kind.TERM, 0, 0.0)],
            turns=[Turn(3.0, Act.PAUSE, 0, 3.0)],
        ),
        Trait.ODD: well,
        Trait.ALONE: replace(well, faults=[Fault(3.0, Kind.KILL, 0, 0.0)]),
        # Killed while the history has something to write.
        Trait.HISTORY: replace(well, faults=[Fault(at, Kind.KILL, 0, 0.0) for at in (1.5, 1.9)]),
    }
    return replace(found[trait], traits=frozenset({trait}))


def plan_pause_in_a_crash() -> Schedule:
    """Killed while everything that was taken up is owed, and paused before it is there again."""
    return replace(
        plan_trait(Trait.PAUSE),
        length=5.0,
        horizon=30.0,
        hold_limit=60.0,
        traits=frozenset({Trait.PAUSE, Trait.ALONE}),
        phases=[Phase(0.1, Mood.FAIL, 14.0)],
        faults=[Fault(4.0, Kind.KILL, 0, 3.0)],
        turns=[Turn(4.5, Act.PAUSE, 0, 30.0)],  # on a busy machine a start takes ten seconds
    )


def _isolated(schedule: Schedule, kind: str) -> Schedule:
    """Half of them with the daemons' own ways of keeping endpoints apart.

    Then one endpoint is ill for long enough, while there is something to deliver, that breakers open and deliveries are parked.
    """
    # By itself, so that the rest of a seed stays what it was.
    draw = random.Random(f"isolation {kind} {schedule.seed}")
    if draw.random() < 0.5:
        return schedule
    limits = [limit for limit in (2.0, 5.0, 10.0, 15.0) if limit >= schedule.horizon]
    hold_limit = draw.choice(limits)
    ill = Phase(
        round(draw.uniform(0.5, 2.0), 2),
        draw.choice((Mood.FAIL, Mood.HANG, Mood.DOWN)),
        round(draw.uniform(3.5, 7.0), 2),
    )
    phases = [ill, *(phase for phase in schedule.phases if phase.at > ill.at + ill.lasts)]
    return replace(schedule, parking=True, hold_limit=hold_limit, phases=phases)


def _frozen(schedule: Schedule, kind: str) -> Schedule:
    """A few of them with a stop of half a minute, as of a machine that is suspended."""
    draw = random.Random(f"frozen {kind} {schedule.seed}")
    if draw.random() >= _FROZEN_SHARE:
        return schedule
    fault = Fault(round(draw.uniform(0.5, schedule.length), 2), Kind.STOP, draw.randrange(2), _FROZEN)
    return replace(schedule, faults=sorted([*schedule.faults, fault], key=lambda each: each.at))


def _phases(draw: random.Random, length: float) -> list[Phase]:
    phases = []
    at = draw.uniform(0.0, 6.0)
    while at < length:
        lasts = draw.uniform(1.0, 6.0)
        phases.append(Phase(round(at, 2), draw.choice(list(Mood)), round(lasts, 2)))
        at += lasts + draw.uniform(1.0, 6.0)
    return phases


AMONG = {"kafka": ON_KAFKA, "replicated": REPLICATED, "sqlite": EMBEDDED}
"""The traits that each kind of broker can have."""


def drawn(schedule: Schedule, broker: str) -> Schedule:
    """The same with one to three traits that its seed chooses; the history of some is compared besides."""
    draw = random.Random(f"traits {broker} {schedule.seed}")
    traits = draw_traits(draw, (trait for trait in AMONG[broker] if trait is not Trait.HISTORY))
    # By itself, as above.
    if random.Random(f"history {broker} {schedule.seed}").random() < _COMPARED_SHARE:
        traits |= {Trait.HISTORY}
    return with_traits(schedule, traits)


def with_traits(schedule: Schedule, traits: frozenset[Trait]) -> Schedule:
    """The same with these traits: what they do when, and what they need of the rest."""
    # By itself, as above.
    draw = random.Random(f"turns {schedule.seed}")
    found = turns(draw, traits, schedule.length)
    changed = replace(schedule, traits=traits, turns=found)
    if Trait.HISTORY in traits:
        changed = replace(changed, faults=_crashes(schedule))
    if Trait.FANOUT in traits:
        changed = replace(
            changed,
            events=max(12, 8000 // Sizes.of(schedule.seed, traits).fan),
            phases=_ailing(draw, schedule),
        )
    if Trait.TENANTS in traits:
        changed = replace(changed, phases=_ailing(draw, schedule))
    if Trait.STALLS in traits:
        # As a deployment has it: what waits for an endpoint that stalls is to be held, not parked.
        bursts = schedule.events * draw.choice((2, 4))
        changed = replace(
            changed, parking=True, horizon=5.0, hold_limit=60.0, max_in_flight=10_000, bursts=bursts
        )
        if draw.random() < 0.6:
            # How soon all has come after a stall can only be said where nothing else has gone wrong.
            calm = [Fault(max(turn.at + turn.lasts for turn in found) + 20.0, Kind.TERM, 0, 0.0)]
            changed = replace(changed, faults=calm, phases=())
    if Trait.RETENTION in traits:
        # An endpoint that hangs keeps the daemon at its cap, and what it has not read yet expires.
        hung = Phase(0.3, Mood.HANG, round(schedule.length * 0.9, 2))
        changed = replace(changed, max_in_flight=150, phases=[hung])
    if Trait.PAUSE in traits and not {Trait.FANOUT, Trait.TENANTS, Trait.RETENTION} & traits:
        # Something waits for its retry when the pause begins.
        first = next(turn.at for turn in found if turn.act is Act.PAUSE)
        failing = Phase(round(max(0.1, first - 3.0), 2), Mood.FAIL, 4.0)
        changed = replace(
            changed, phases=[failing, *(p for p in schedule.phases if p.at > failing.at + failing.lasts)]
        )
    if Trait.ALONE in traits:
        changed = replace(changed, replicas=1, faults=_kills(draw, schedule.length))
    return changed


def _ailing(draw: random.Random, schedule: Schedule) -> list[Phase]:
    """Failing nearly all the time, at once, so that much is acknowledged by all others meanwhile."""
    mood = draw.choice((Mood.FAIL, Mood.FAIL, Mood.CHOOSE))
    return [Phase(0.1, mood, round(schedule.length * 0.95, 2))]


def _kills(draw: random.Random, length: float) -> list[Fault]:
    """Of the only replica, with time between them to come back."""
    faults: list[Fault] = []
    at = draw.uniform(2.0, 4.0)
    while at < length or not faults:
        lasts = draw.uniform(0.0, 1.0)
        faults.append(Fault(round(at, 2), Kind.KILL, 0, round(lasts, 2)))
        at += lasts + draw.uniform(7.0, 12.0)
    return faults


def _crashes(schedule: Schedule) -> Sequence[Fault]:
    """Its faults, among them kill -9 of the replica whose history is compared, and of the broker."""
    faults = list(schedule.faults)
    if not faults:
        return faults
    draw = random.Random(f"crashes {schedule.seed}")
    if schedule.embedded:
        if all(fault.kind is not Kind.KILL for fault in faults):
            faults[-1] = replace(faults[-1], kind=Kind.KILL)
        return faults
    for kind in (Kind.KILL, Kind.BROKER):
        if not any(fault.kind is kind and (kind is Kind.BROKER or fault.target == 0) for fault in faults):
            at, lasts = draw.uniform(0.3, 0.9) * schedule.length, draw.uniform(0.5, 3.0)
            faults.append(Fault(round(at, 2), kind, 0, round(lasts, 2)))
    return sorted(faults, key=lambda each: each.at)


def seeds_of(text: str) -> list[int]:
    """Seeds as `--seeds` takes them: `1-3,7`."""
    seeds: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        seeds += range(int(first), int(last or first) + 1)
    return seeds
