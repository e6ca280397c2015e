"""The history against the endpoints' own record: what became of each delivery, nothing missing and nothing twice.

What counts:

1. A delivery is an event at one place of its topic and a subscription. Where the endpoint has acknowledged it the history says `delivered`,
   where the dead-letter topic has it `dead`, and it says neither of anything else. When nobody has anything to do, nothing waits.
2. Each delivery has one row, and each event one for each of its places, with the SHA-256 of the body that the endpoints got.
3. The history has no answer that no endpoint gave, and none twice. It lacks an acknowledgement only if that was given to a process that
   trouble struck right then: what such a process had not logged, the next one does again.
4. Counts are the sums of the rows.
5. Of several generations the last one holds. So a few deliveries are sent again after the faults, and end otherwise than before.
6. A history that claims to know everything before a time has read the logs to where they ended at that time.
7. Thrown away and made again of the topics (`dispatcher history rebuild --since`), it is the same.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
from msgspec import UNSET

from dispatcher.broker.base import TopicPartition
from dispatcher.core.retry.records import delivery_id
from dispatcher.history.base import (
    COUNTED,
    CountQuery,
    DeadRow,
    DeliveryQuery,
    DeliveryRow,
    DeliveryState,
    EventQuery,
    EventRow,
    Gap,
    HistoryStore,
    Retention,
    Standing,
)
from dispatcher.history.logged import AttemptDetail
from dispatcher.history.open import history_directory, open_store, shares_history
from dispatcher.history.sqlite.store import SqliteHistory
from dispatcher.settings.load import load
from tests.commands.console import environment
from tests.torture import ledger as books
from tests.torture.endpoints import refused
from tests.torture.ledger import Debt
from tests.torture.replica import Replica
from tests.torture.subscribers import PICKY
from tests.torture.traits import Trait

if TYPE_CHECKING:
    from tests.torture.run import Placed, Run

AHEAD_OF_LOG: Final = "committed without the attempt log: its records are not acknowledged; a crash now loses them, and no delivery"
_AGAIN: Final = 3  # deliveries that are sent again and refused, and as many that are taken
_KNOWN_WITHIN: Final = 120.0  # beside everything else that a busy machine does
_ENDS_WITHIN: Final = 120.0  # what was sent again
_EVER: Final = 2**53
_PAGE: Final = 1000
_MONTH_MS: Final = 30 * 86_400_000
_SHOWN: Final = 5
_decode: Final = msgspec.json.Decoder(AttemptDetail).decode

Place = tuple[str, int, int]
"""Topic, partition and offset of an event."""


class Snapshot(NamedTuple):
    """All that a store holds."""

    deliveries: Sequence[DeliveryRow]
    attempts: Mapping[str, Sequence[str]]
    """Of each delivery, as JSON, oldest first."""
    dead: Mapping[str, DeadRow]
    events: Sequence[EventRow]
    counts: Mapping[str, int]
    gaps: Sequence[Gap]


@dataclass
class Truth:
    """What the endpoints and the topics say."""

    places: Mapping[str, Collection[Place]]
    """Where each event stands, or did."""
    owed: Collection[Debt] = ()
    paid: Mapping[Debt, int] = field(default_factory=dict)
    """How often an endpoint has acknowledged it."""
    asked: Mapping[Debt, int] = field(default_factory=dict)
    """How many requests came for it."""
    dead: Collection[str] = ()
    """Deliveries of the dead-letter topic."""
    again: Mapping[str, DeliveryState] = field(default_factory=dict)
    """Deliveries that were sent again after their end, and how that ended."""
    bodies: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of what the endpoints got of each event."""
    risky: Callable[[Debt], int] = lambda _: 0
    """How many of its acknowledgements were given to a process in trouble."""
    present: Collection[tuple[str, Place]] = ()
    """Events, and places where they stand now, which everything that the topics have must tell of."""
    gone: Callable[[TopicPartition, int], bool] = lambda *_: False
    """Whether a record was deleted before it could be read, and that was said."""
    deletes: bool = False
    """Whether records are deleted at all: what was to be read again then may wait for ever."""
    anew: bool = False
    """Whether a topic was made anew: offsets begin again, and rows take the place of others."""
    unlogged: int = 0
    """Records that a daemon has said were not in the log when it committed: a crash loses them."""


async def take(store: HistoryStore, dead: Collection[str] = ()) -> Snapshot:
    """Everything that the store knows. `dead` are deliveries that have a dead letter, whatever the store thinks."""
    deliveries = await _pages(lambda after: store.deliveries(DeliveryQuery(0, _EVER, _PAGE, after=after)))
    events = await _pages(lambda after: store.events(EventQuery(0, _EVER, _PAGE, after=after)))
    attempts: dict[str, Sequence[str]] = {}
    letters: dict[str, DeadRow] = {}
    for row in deliveries:
        if (
            row.delivery_id not in dead
            and row.state == DeliveryState.DELIVERED
            and row.attempts == 1
            and _decode(row.first).decision == "delivered"
        ):
            attempts[row.delivery_id] = (row.first,)
            continue
        detail = await store.delivery(row.delivery_id)
        attempts[row.delivery_id] = () if detail is None else detail.attempts
        if detail is not None and detail.dead_letter is not None:
            letters[row.delivery_id] = detail.dead_letter
    found = await store.counts(CountQuery(0, _EVER, _EVER))
    counts = dict(zip(COUNTED, found[0].counts if found else [0] * len(COUNTED), strict=False))
    return Snapshot(deliveries, attempts, letters, events, counts, await store.gaps(0, _EVER))


async def _pages(ask: Callable[[Any], Awaitable[Any]]) -> list[Any]:
    rows: list[Any] = []
    after = None
    while True:
        page = await ask(after)
        rows += page.items
        if (after := page.last) is None:
            return rows


def differences(found: Snapshot, truth: Truth) -> list[str]:
    """What of it isn't so, a sentence each."""
    said = [
        *_missing(found, truth),
        *_twice(found, truth),
        *_states(found, truth),
        *_answers(found, truth),
        *_sums(found, truth),
        *_events(found, truth),
    ]
    return [sentence for sentence in said if sentence]


def _told(what: str, cases: Collection[Any]) -> str:
    """A sentence with some of the cases; nothing where there is none."""
    if not cases:
        return ""
    shown = ", ".join(map(str, list(cases)[:_SHOWN]))
    return f"{len(cases)} {what}: {shown}"


def _expected(truth: Truth) -> dict[str, list[tuple[Debt, Place]]]:
    """What each delivery id that there must be stands for; several where a topic was made anew."""
    expected: defaultdict[str, list[tuple[Debt, Place]]] = defaultdict(list)
    for debt in truth.owed:
        for place in truth.places.get(debt[1], ()):
            expected[delivery_id(*place, debt[0])[4:]].append((debt, place))
    return expected


def _missing(found: Snapshot, truth: Truth) -> Iterable[str]:
    there = {(row.delivery_id, row.event_id) for row in found.deliveries}
    missing = [
        f"{debts[-1][0][0]} {debts[-1][0][1]}"
        for id_, debts in _expected(truth).items()
        if not any((id_, debt[1]) in there for debt, _ in debts)
        and any(truth.paid.get(debt) or id_ in truth.dead for debt, _ in debts)
        and not all(truth.gone(TopicPartition(*place[:2]), place[2]) for _, place in debts)
    ]
    if len(missing) > truth.unlogged:
        yield _told("deliveries that have ended are missing", sorted(missing))
    yield _told(
        "dead letters are missing",
        sorted(
            row.delivery_id
            for row in found.deliveries
            if row.delivery_id in truth.dead and row.delivery_id not in found.dead
        ),
    )


def _twice(found: Snapshot, truth: Truth) -> Iterable[str]:
    rows = Counter(row.delivery_id for row in found.deliveries)
    yield _told("deliveries have several rows", [id_ for id_, count in rows.items() if count > 1])
    events = Counter((row.event_id, row.topic, row.partition, row.offset) for row in found.events)
    yield _told("events have several rows", [key for key, count in events.items() if count > 1])
    keys = {
        id_: Counter((each.generation, each.time_ms, each.attempt) for each in map(_decode, attempts))
        for id_, attempts in found.attempts.items()
    }
    yield _told(
        "deliveries have an attempt twice",
        [id_ for id_, each in keys.items() if max(each.values(), default=0) > 1],
    )
    yield _told(
        "rows are of nothing that was published",
        [
            row
            for row in found.deliveries
            if (row.topic, row.partition, row.offset) not in truth.places.get(row.event_id, ())
            or delivery_id(row.topic, row.partition, row.offset, row.subscription_id)[4:] != row.delivery_id
        ],
    )


def _states(found: Snapshot, truth: Truth) -> Iterable[str]:
    wrong: defaultdict[str, list[str]] = defaultdict(list)
    for row in found.deliveries:
        debt = (row.subscription_id, row.event_id)
        state = DeliveryState(row.state)
        paid, dead = bool(truth.paid.get(debt)), row.delivery_id in truth.dead
        told = f"{debt[0]} {debt[1]} ({row.delivery_id})"
        if (last := truth.again.get(row.delivery_id)) is not None:
            if state is not last or row.generation < 2:
                wrong[f"were sent again, and are not {last.name.lower()} in a later generation"].append(told)
        elif state is DeliveryState.DELIVERED:
            if not paid:
                wrong["are delivered, and no endpoint has acknowledged them"].append(told)
        elif state is DeliveryState.DEAD:
            if not dead:
                wrong["are dead without a dead letter"].append(told)
        elif paid and not dead and not truth.anew:
            wrong[f"are {state.name.lower()}, and an endpoint has acknowledged them"].append(told)
        elif dead:
            wrong[f"are {state.name.lower()}, and have a dead letter"].append(told)
        elif state is not DeliveryState.DROPPED and not truth.deletes and not truth.anew:
            wrong[f"are {state.name.lower()}, and nobody has anything to do"].append(told)
    for what, cases in wrong.items():
        yield _told(f"deliveries {what}", cases)


def _answers(found: Snapshot, truth: Truth) -> Iterable[str]:
    answers, taken = Counter[Debt](), Counter[Debt]()
    for row in found.deliveries:
        debt = (row.subscription_id, row.event_id)
        for attempt in map(_decode, found.attempts[row.delivery_id]):
            answers[debt] += attempt.status is not UNSET
            taken[debt] += attempt.decision == "delivered"
    yield _told(
        "deliveries have more answers than came requests",
        [
            (debt, count, truth.asked.get(debt, 0))
            for debt, count in answers.items()
            if count > truth.asked.get(debt, 0)
        ],
    )
    yield _told(
        "deliveries were acknowledged less often than is said",
        [
            (debt, count, truth.paid.get(debt, 0))
            for debt, count in taken.items()
            if count > truth.paid.get(debt, 0)
        ],
    )
    unlogged = [
        (debt, count, taken[debt])
        for debt, count in truth.paid.items()
        if count - taken[debt] > 0 and count - taken[debt] > truth.risky(debt)
    ]
    if not truth.anew and len(unlogged) > truth.unlogged:
        yield _told("deliveries lack acknowledgements that no trouble explains", unlogged)


def _sums(found: Snapshot, truth: Truth) -> Iterable[str]:
    sums = Counter[str]()
    for row in found.deliveries:
        attempts = [_decode(each) for each in found.attempts[row.delivery_id]]
        made = sum(each.total_ms is not UNSET for each in attempts)
        if row.attempts != made:
            yield f"{row.delivery_id} has {made} attempts, and {row.attempts} by its row"
        sums["attempts"] += made
        for each in attempts:
            if each.decision in {"delivered", "dead", "dropped", "parked"}:
                sums[each.decision] += 1
    if truth.anew:
        return  # what another delivery took the place of is counted all the same
    for name in ("attempts", "delivered", "dead", "dropped", "parked"):
        if found.counts[name] != sums[name]:
            yield f"{found.counts[name]} are counted as {name}, and the rows have {sums[name]}"


def _events(found: Snapshot, truth: Truth) -> Iterable[str]:
    there = {(row.event_id, (row.topic, row.partition, row.offset)) for row in found.events}
    yield _told("events are missing", sorted(set(truth.present) - there))
    yield _told(
        "events were never published there",
        sorted(each for each in there if each[1] not in truth.places.get(each[0], ())),
    )
    yield _told(
        "events have the SHA-256 of another body than the endpoints got",
        sorted(
            {row.event_id for row in found.events if truth.bodies.get(row.event_id, row.sha256) != row.sha256}
        ),
    )


def changes(first: Snapshot, second: Snapshot, *, events: bool) -> list[str]:
    """What a history made again says otherwise. `events`: whether the topics still have all of them."""
    rows, again = ({row.delivery_id: row for row in each.deliveries} for each in (first, second))
    said = [
        _told("deliveries are not there again", sorted(rows.keys() - again.keys())),
        _told("deliveries are there that were not", sorted(again.keys() - rows.keys())),
        _told(
            "deliveries are told otherwise",
            [
                (rows[id_], again[id_])
                for id_ in sorted(rows.keys() & again.keys())
                if rows[id_] != again[id_]
            ],
        ),
        _told(
            "deliveries have other attempts",
            [
                (id_, first.attempts[id_], second.attempts[id_])
                for id_ in sorted(rows.keys() & again.keys())
                if list(first.attempts[id_]) != list(second.attempts[id_])
            ],
        ),
        ""
        if first.counts == second.counts
        else f"counts were {dict(first.counts)}, and are {dict(second.counts)}",
    ]
    if events:
        said += [
            _told("events are not there again", sorted(set(first.events) - set(second.events), key=str)),
            _told("events are there that were not", sorted(set(second.events) - set(first.events), key=str)),
        ]
    return [sentence for sentence in said if sentence]


class HistoryAudit:
    """What the trait `history` does in a run."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._again: dict[str, DeliveryState] = {}

    @property
    def _replica(self) -> Replica:
        """The one whose history is compared."""
        return self._run.replicas[0]

    async def caught_up(self, replica: Replica) -> bool:
        """Wait until it says that it knows all there was when this began."""
        begin = time.time()
        deadline = self._run.clock() + _KNOWN_WITHIN
        told: object = None
        while self._run.clock() < deadline:
            status, page = await replica.ask("GET", "/v1/deliveries?limit=1")
            told = (status, page.get("as_of") if isinstance(page, dict) else None)
            if status == 200 and page["as_of"] and datetime.fromisoformat(page["as_of"]).timestamp() > begin:
                return True
            await asyncio.sleep(0.2)
        self._find(f"{replica.name} did not know all within {_KNOWN_WITHIN:.0f} s: status and as_of {told}")
        return False

    # After the faults: generations.

    async def send_again(self) -> None:
        """A few that were taken and are refused from now on, and a few that were refused and are taken."""
        run, endpoints, ledger = self._run, self._run.endpoints, self._run.ledger
        if not await self.caught_up(self._replica):
            return
        of_picky = sorted(debt for debt in ledger.owed if debt[0] == PICKY)
        taken = [debt for debt in of_picky if debt in ledger.paid][:_AGAIN]
        dead = [debt for debt in of_picky if refused(debt[1])][:_AGAIN]
        requests: dict[Debt, int] = {}  # that there are when it has ended: the schedule has one wait
        for debt, state in [
            *((debt, DeliveryState.DEAD) for debt in taken),
            *((debt, DeliveryState.DELIVERED) for debt in dead),
        ]:
            if (id_ := await self._only(debt)) is None:
                continue
            endpoints.turned[debt] = state is DeliveryState.DELIVERED
            requests[debt] = len(ledger.asked[debt]) + (1 if state is DeliveryState.DELIVERED else 2)
            status, answer = await self._replica.ask("POST", f"/v1/deliveries/{id_}/retry")
            if status != 202:
                del endpoints.turned[debt], requests[debt]
                # Where records are deleted there may be nothing left to send.
                (run.report.notes.append if Trait.RETENTION in run.traits else self._find)(
                    f"{id_} could not be sent again: {status} {answer}"
                )
                continue
            self._again[id_.removeprefix("dlv_")] = state

        def left() -> int:
            return sum(len(ledger.asked[debt]) < count for debt, count in requests.items())

        if not await run.until(lambda: not left(), _ENDS_WITHIN):
            self._find(f"{left()} of {len(requests)} had not been sent again within {_ENDS_WITHIN:.0f} s")
        await run.settled(run.replicas)

    async def _only(self, debt: Debt) -> str | None:
        """The id of the delivery, where the event stands once, and in a topic that stays what it is."""
        path = f"/v1/deliveries?subscription={debt[0]}&event={debt[1]}"
        status, page = await self._replica.ask("GET", path)
        rows = page["deliveries"] if status == 200 else []
        if len(rows) != 1 or rows[0]["source"]["topic"] != self._run.topic:
            return None
        return str(rows[0]["id"])

    # At the end.

    async def __call__(self, records: Sequence[Placed]) -> None:
        """Compare what the topics and the endpoints say (`records` are all there are now), and compare again what is made of them anew.

        The replicas have ended, and this one knew all by then.
        """
        run = self._run
        truth = self._truth(records)
        first = await self._look(truth, "")
        if not await self._rebuild():
            return
        await run.nothing_left(self._replica)
        second = await self._look(truth, "made again, ")
        run.report.audited = len(second.deliveries)
        # What took the place of others, and what was deleted in the meantime, isn't there again.
        if Trait.ANEW not in run.traits and not first.gaps:
            for change in changes(first, second, events=Trait.RETENTION not in run.traits):
                self._find(f"made again, {change}")

    async def _look(self, truth: Truth, when: str) -> Snapshot:
        store = self._open()
        await store.open()
        try:
            await self._judge_positions(store, when)
            found = await take(store, truth.dead)
        finally:
            await store.close()
        for difference in differences(found, truth):
            self._find(f"{when}{difference}")
        if found.gaps:
            self._run.report.notes.append(f"the history has gaps: {found.gaps[:3]}")
        return found

    def _open(self) -> HistoryStore:
        daemon = self._replica.daemon
        settings = load(daemon.settings_file, daemon.environ, {})
        if shares_history(settings):
            store = open_store(settings)
            assert store is not None
            return store
        # It is relative to where the daemon runs.
        return SqliteHistory(
            daemon.folder / history_directory(settings), Retention(_MONTH_MS, _MONTH_MS), keep_all=True
        )

    async def _judge_positions(self, store: HistoryStore, when: str) -> None:
        run = self._run
        read: defaultdict[tuple[str, int], set[int]] = defaultdict(set)
        positions: Mapping[Any, Standing] = await store.positions()
        for (topic, _, partition), standing in positions.items():
            read[topic, partition].add(standing.next)
        ends = await run.ends([*run.event_topics, run.dead_topic, f"{run.name}.attempts"])
        if behind := {
            key: (sorted(read[key]), end) for key, end in ends.items() if end and end not in read[key]
        }:
            self._find(f"{when}it said that it knew all, and stands at (positions, end): {behind}")

    async def _rebuild(self) -> bool:
        daemon = self._replica.daemon
        process = await asyncio.create_subprocess_exec(
            *daemon.command,
            *("history", "rebuild", "--yes", "--since", "1d", "--config", str(daemon.settings_file)),
            cwd=daemon.folder,
            env=environment(daemon.environ),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        async with asyncio.timeout(120.0):
            said, _ = await process.communicate()
        if process.returncode:
            self._find(f"it can't be made again: {said.decode(errors='replace')[-1000:]}")
        return not process.returncode

    def _truth(self, records: Iterable[Placed]) -> Truth:
        run, ledger = self._run, self._run.ledger
        now = {(each.epoch, each.partition, each.record.offset) for each in records}
        troubles = run.troubles

        def risky(debt: Debt) -> int:
            return sum(
                any(books.at_risk(ledger, debt, payment, trouble) for trouble in troubles)
                for payment in ledger.paid[debt]
            )

        return Truth(
            {event: {(*at[1], at[2]) for at in places} for event, places in run.found.places.items()},
            owed=ledger.owed,
            paid={debt: len(payments) for debt, payments in ledger.paid.items()},
            asked={debt: len(requests) for debt, requests in ledger.asked.items()},
            dead={id_.removeprefix("dlv_") for id_ in run.found.dead_ids},
            again=self._again,
            bodies=run.endpoints.bodies,
            risky=risky,
            present={
                (event, (*at[1], at[2]))
                for event, places in run.found.places.items()
                for at in places
                if at in now
            },
            gone=run.told_gone(),
            deletes=Trait.RETENTION in run.traits,
            anew=Trait.ANEW in run.traits,
            unlogged=sum(
                line["records"] for replica in run.replicas for line in replica.daemon.log_lines(AHEAD_OF_LOG)
            ),
        )

    def _find(self, what: str) -> None:
        self._run.report.findings.append(f"the history: {what}")
