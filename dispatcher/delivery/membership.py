"""One membership in a consumer group: the partitions it has, what each still owes, and the commits.

The engine takes deliveries from two sources, the event topics and the retry topics. Both need the same
care: a tracker per partition, a commit of the lowest owed offset, trackers that outlive a rebalance. Each is
a group of its own, so that a rebalance of one leaves the other's partitions alone, and so that either can be
read at its own pace. (One consumer over all topics was rejected: the library has one fetch in flight
per broker, so a retry that is due would wait for the long poll of the event topics.)

With each commit goes a note of what is done beyond it (`core/commit/note.py`), so that whoever reads on from there, after
a crash, a restart or a rebalance, passes over what has been acknowledged. A note is committed when it has changed,
also where the lowest owed offset hasn't.

The note also reserves what will be taken up until the next one (`core/commit/reservation.py` says what for). The commits of every second
keep that ahead of the reader; a batch that goes beyond it waits for a commit of its own (`reserve`), after a start, and where
traffic has grown by more than twice within the second.

What happens to deliveries while partitions move is the host's business: it is asked before they go,
and told what came.

Rules:

1. `trackers` has exactly the partitions that were assigned last.
2. A tracker taken out of `trackers` is `lost`; what it still owes is settled with it, harmlessly. One whose topic is gone
   (`on_gone`) isn't: no other member will deliver what it owes.
3. Commits are made by `commit`, never beyond what a tracker allows, and one at a time: a note that is older than what is
   committed already would have what is done since sent again. `reserve` commits what is committed already, also
   while `commit` prepares another one or waits for the attempt log, and takes nothing back that the other reserves.
4. Reserving never holds deliveries up for longer than `_RESERVE_LIMIT`, and not again until a commit has gone through: a
   group whose coordinator is away reads on, though a pause that meets a crash may then cost what was taken up meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Mapping
from typing import Final, Protocol

import structlog

from dispatcher.broker.base import (
    Broker,
    BrokerError,
    CommitRefused,
    GroupMemory,
    Jump,
    MetadataTooLarge,
    NoMemory,
    Position,
    TopicPartition,
    Why,
)
from dispatcher.core.commit.note import Note
from dispatcher.core.commit.offsets import PartitionTracker
from dispatcher.delivery.attempt_log import COMMIT_WAITS, AttemptLog
from dispatcher.delivery.commit_notes import READ_LIMIT, CommitNotes, Prepared
from dispatcher.delivery.jumps import Jumps
from dispatcher.telemetry.metrics import Labels, Metrics

log = structlog.get_logger(__name__)


_RESERVE_LIMIT: Final = 1.0  # seconds


class MembershipHost(Protocol):
    """Who works on what a membership brings."""

    async def before_revocation(self, membership: Membership) -> None:
        """Partitions of it are about to move: end what is under way, start nothing."""

    async def after_revocation(self, membership: Membership) -> None:
        """What had ended is committed."""

    def after_assignment(self, membership: Membership) -> None:
        """`trackers` are new; those that went elsewhere are lost."""


class Membership:
    """A consumer and its trackers. Also the broker's assignment listener."""

    def __init__(
        self,
        broker: Broker,
        topics: Collection[str],
        group: str,
        host: MembershipHost,
        metrics: Metrics,
        *,
        own: bool = False,
        memory: GroupMemory | None = None,
        notes_topic: str | None = None,
        reserves: bool = False,
        read_limit: float = READ_LIMIT,
        attempts: AttemptLog | None = None,
        tracker: Callable[[str, int, int, Note], PartitionTracker] = PartitionTracker,
    ) -> None:
        """`own`: the topics are the dispatcher's own; `memory`: what the group has read before (see `Broker.consumer`).

        `notes_topic` is for what doesn't fit beside a commit, and an assignment waits for what is read of it for `read_limit`
        seconds; `reserves`: records are taken up only after `reserve`; commits wait for `attempts`; `tracker` makes a partition's.
        """
        self.group = group
        self.trackers: dict[TopicPartition, PartitionTracker] = {}
        self.assigned = False
        self.memory = memory or NoMemory()
        self._host = host
        self._tracker = tracker
        self._metrics = metrics
        self._committing = asyncio.Lock()
        self._notes = CommitNotes(broker, group, notes_topic, reserves=reserves, read_limit=read_limit)
        self._reserves = reserves
        self._attempts = attempts
        self._ahead_of_log = False  # the last commit has not waited for all of it
        # A commit before partitions are given up must not cost the session.
        self._log_limit = min(COMMIT_WAITS, read_limit)
        self._moving = False  # the partitions
        self._failing = False  # the last commit has not gone through
        self._sending = asyncio.Lock()
        self.jumps = Jumps(group, metrics)
        self._jumped: list[Jump] = []  # since the last assignment
        for topic in topics:
            metrics.offsets_skipped[topic] += 0
        for why in Why:
            metrics.jumps[str(why)] += 0
        self.consumer = broker.consumer(topics, group, self, own=own, memory=self.memory)

    @property
    def problem(self) -> str | None:
        """Why nothing comes from it now, in one sentence; None when all is well."""
        if self.consumer.problem is not None:
            return self.consumer.problem
        return None if self.assigned else "no partitions have been assigned yet"

    def warnings(self) -> list[str]:
        """What isn't as it should be, while it works, a sentence each."""
        found = self.jumps.warnings()
        if self._notes.problem is not None:
            found.append(self._notes.problem)
        if self.assigned and not self.trackers and self.consumer.problem is None:
            found.append(
                f"no partitions are assigned: group {self.group} has more members than its topics have partitions, so this"
                " process delivers nothing until another one ends"
            )
        return found

    def observe(self, now: float) -> None:
        """Keep `held` current; called every second or so."""
        for tracker in self.trackers.values():
            tracker.observe(now)

    async def commit(self) -> None:
        """Commit each partition that has moved since the last time: its lowest owed offset, and what is done beyond."""
        await self._commit(self.trackers, last=False)

    async def commit_last(self) -> None:
        """The same before the group is left."""
        await self._commit(self.trackers, last=True)

    async def _commit(self, partitions: Collection[TopicPartition], *, last: bool) -> None:
        async with self._committing:
            for partition, (first, end) in self.consumer.passed().items():
                if partition in self.trackers:
                    self.trackers[partition].pass_over(first, end)
            trackers = {p: tracker for p in partitions if (tracker := self.trackers.get(p)) is not None}
            prepared = await self._notes.prepare(trackers, last=last)
            if any(
                made.position != (trackers[p].committed, trackers[p].noted) for p, made in prepared.items()
            ):
                await self._await_log()
            async with self._sending:
                await self._send(trackers, prepared, last=last)

    async def _send(
        self,
        trackers: Mapping[TopicPartition, PartitionTracker],
        prepared: Mapping[TopicPartition, Prepared],
        *,
        last: bool,
    ) -> None:
        """Make these commits, and note what has come of them."""
        wanted: dict[TopicPartition, Prepared] = {}
        for partition, made in prepared.items():
            tracker = trackers[partition]
            if self.trackers.get(partition) is not tracker:
                continue  # given up, or gone, while the note was made
            if made.position == (tracker.committed, tracker.noted):
                tracker.told(made.state)
            else:
                wanted[partition] = made if last else self._notes.keep_reserved(partition, tracker, made)
        if not wanted:
            return
        try:
            await self.consumer.commit({partition: made.position for partition, made in wanted.items()})
        except CommitRefused as error:
            self._metrics.commits["refused"] += 1
            log.warning("commit refused: the partitions were reassigned", group=self.group, error=str(error))
            refused = error.partitions if error.partitions is not None else wanted
            self._failing = error.partitions is None
            _note(trackers, {p: made for p, made in wanted.items() if p not in refused})
        except MetadataTooLarge as error:
            self._metrics.commits["failed"] += 1
            self._failing = True
            self._notes.limit = max(len(made.position.metadata) for made in wanted.values()) // 2
            log.warning(
                "commit failed, trying again with a shorter note of what is done beyond it; more may arrive twice"
                " after a crash: raise the broker's offset.metadata.max.bytes to 4096",
                group=self.group,
                error=str(error),
                limit=self._notes.limit,
            )
        except BrokerError as error:
            # Nothing is lost by it: the next commit carries the same offsets, or later ones.
            self._metrics.commits["failed"] += 1
            self._failing = True
            log.warning("commit failed, trying again", group=self.group, error=str(error))
        else:
            self._metrics.commits["ok"] += 1
            self._failing = False
            _note(trackers, wanted)

    async def _await_log(self) -> None:
        """What is about to be committed is done with: have the records of its attempts acknowledged first."""
        if self._attempts is None:
            return
        if await self._attempts.caught_up(self._log_limit):
            self._ahead_of_log = False
            return
        self._metrics.commits_ahead_of_log += 1
        if not self._ahead_of_log:
            self._ahead_of_log = True
            log.warning(
                "committed without the attempt log: its records are not acknowledged; a crash now loses them, and no delivery",
                group=self.group,
                records=len(self._attempts),
                seconds=self._log_limit,
            )

    async def reserve(self, tracker: PartitionTracker, end: int) -> None:
        """Have it committed that the tracker's records below `end` may be taken up; returns before long, whatever comes of it.

        Call it before any of them is.
        """
        tracker.reservation.announced = end
        if end > tracker.reservation.below and not self._moving:
            await self._reserve()

    async def _reserve(self) -> None:
        """Commit again what is committed, with notes that reserve more."""
        if self._failing:
            return  # rule 4
        below: dict[TopicPartition, int] = {}
        positions: dict[TopicPartition, Position] = {}
        trackers: dict[TopicPartition, PartitionTracker] = {}
        try:
            async with asyncio.timeout(_RESERVE_LIMIT), self._sending:
                for partition, tracker in self.trackers.items():
                    wanted = tracker.reservation.wanted(tracker.next)
                    if wanted <= tracker.reservation.below:
                        continue
                    position = self._notes.reserving(partition, tracker, wanted)
                    if position is not None:
                        below[partition], positions[partition] = wanted, position
                        trackers[partition] = tracker
                await self.consumer.commit(positions)
        except CommitRefused as error:
            # Of what is gone or has moved nothing more is taken up; the others are committed.
            self._failing = error.partitions is None
            for partition in positions if error.partitions is None else error.partitions:
                below.pop(partition, None)
        except (BrokerError, TimeoutError) as error:
            self._failing = True
            log.warning(
                "can't commit how far records may be taken up: what is taken up until the next commit is lost for subscriptions"
                " that are paused before the next process reads it, should this one be killed",
                group=self.group,
                error=str(error) or f"no answer within {_RESERVE_LIMIT:g} s",
            )
            return
        for partition, reserved in below.items():
            tracker = trackers[partition]
            tracker.noted = positions[partition].metadata
            tracker.reservation.made(reserved, tracker.next)

    async def on_revoked(self, partitions: Collection[TopicPartition]) -> None:
        """Partitions are about to move: end what is under way, start nothing, commit."""
        log.info("partitions revoked", group=self.group, partitions=len(partitions))
        self._moving = True
        await self._host.before_revocation(self)
        await self._commit(partitions, last=True)
        await self._host.after_revocation(self)

    def on_gone(self, partitions: Collection[TopicPartition]) -> None:
        """What is owed of them is delivered all the same, and nothing of it is committed: nobody reads it again."""
        for partition in partitions:
            self.trackers.pop(partition, None)

    def on_jump(self, jump: Jump) -> None:
        """Count it, and have it said; between two assignments when the trackers and the notes are there that tell what was done."""
        if self._moving or jump.partition not in self.trackers:
            self._jumped.append(jump)
        else:
            self._note_jump(jump)

    def _note_jump(self, jump: Jump) -> None:
        tracker = self.trackers.get(jump.partition)
        if tracker is None or jump.why is not Why.RETENTION or jump.expected is None:
            self.jumps.note(jump)
        else:
            self.jumps.note(jump, tracker.unread(jump.expected, jump.to))

    async def on_assigned(self, partitions: Mapping[TopicPartition, Position]) -> None:
        """Keep the trackers of partitions that came back; give up those that went elsewhere."""
        # What we have committed ourselves last is nobody else's work.
        ours = [p for p, t in self.trackers.items() if partitions.get(p) == (t.committed, t.noted)]
        notes = await self._notes.read(partitions, ours)
        ends = self.consumer.ends() if self._reserves else {}
        for partition in [p for p in self.trackers if p not in partitions]:
            self.trackers.pop(partition).lost = True
        for partition, (offset, metadata) in partitions.items():
            done = notes[partition]
            if done.reserved is not None:
                # What comes from now on nobody has taken up.
                done = done._replace(reserved=min(done.reserved, ends.get(partition, done.reserved)))
            tracker = self.trackers.get(partition)
            if tracker is None or not tracker.resume_at(offset, done):
                if tracker is not None:
                    tracker.lost = True
                tracker = self.trackers[partition] = self._tracker(*partition, offset, done)
            tracker.committed, tracker.noted = offset, metadata
        jumped, self._jumped = self._jumped, []
        for jump in jumped:
            self._note_jump(jump)
        self._moving = self._failing = False
        if self._reserves:
            await self._reserve()
        self.assigned = True
        log.info("partitions assigned", group=self.group, partitions=len(partitions))
        self._host.after_assignment(self)

    # For metrics.

    def lag(self) -> dict[Labels, float]:
        """Records not read yet, by topic and partition."""
        with contextlib.suppress(BrokerError):
            return {(p.topic, str(p.partition)): n for p, n in self.consumer.lag().items()}
        return {}

    def held(self) -> dict[Labels, float]:
        """Seconds for which the lowest owed offset has not moved, by topic and partition."""
        return {(p.topic, str(p.partition)): tracker.held for p, tracker in self.trackers.items()}


def _note(
    trackers: Mapping[TopicPartition, PartitionTracker], committed: Mapping[TopicPartition, Prepared]
) -> None:
    """These commits have been made."""
    for partition, made in committed.items():
        tracker = trackers[partition]
        tracker.committed, tracker.noted = made.position
        tracker.told(made.state)
        tracker.reservation.made(made.reserved, tracker.next)
