"""The jobs of all replays, as the topic `dispatcher.replays` has them: every replica knows each, and any may change one.

The topic is followed as the control plane's is (`control/log.py`): a change is made from a version, and of two changes from one version the first counts,
on every replica. So whoever runs a job holds it by writing its checkpoints, and one that lost the job finds out at its next checkpoint.

Beside the jobs the topic has the number of the last job (`sequence`), and which job a request with an Idempotency-Key began (`claim`). A claim is written
before its job: of two replicas that are sent one request at the same moment, one writes it, and both go on with the job that it names.

Deliveries ask `standing` before they are sent. Nothing waits for this topic: until it is read, what was replayed stands still.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import structlog

from dispatcher.broker.base import Broker
from dispatcher.control.errors import ControlError, Unavailable, VersionMismatch
from dispatcher.control.log import WRITE_TIMEOUT, ControlLog
from dispatcher.control.table import Kinds, Row, Table
from dispatcher.core.replay.job import JobState, ReplayJob, read_job
from dispatcher.core.replay.standing import ReplayStanding
from dispatcher.runtime.tasks import Tasks
from dispatcher.settings.groups import Settings

log = structlog.get_logger(__name__)

KEPT: Final = 7 * 86400.0
"""Seconds for which a job is kept that is over."""

PAUSED_AT_MOST: Final = 7 * 86400.0
"""Seconds after which a paused job is cancelled: the topics delete what it was to send."""

_READING: Final = 10.0  # seconds that reading may take at a start before anybody is told
_LAST: Final = "replays"  # the name of the one entry of the sequence
_TRIES: Final = 20  # to get a number that others want, too
_HOUSEKEEPING: Final = 300.0  # seconds between two looks, and up to half of it more
_STANDINGS: Final = {
    JobState.PLANNED: ReplayStanding.GO,
    JobState.RUNNING: ReplayStanding.GO,
    JobState.PAUSED: ReplayStanding.WAIT,
    JobState.DONE: ReplayStanding.GO,
    # What is written already was asked for.
    JobState.FAILED: ReplayStanding.GO,
    JobState.CANCELLED: ReplayStanding.OVER,
}


def replays_topic(settings: Settings) -> str:
    """The topic that the jobs are in."""
    return f"{settings.topics.prefix}replays"


class ReplayClaim(NamedTuple):
    """Which job a request with an Idempotency-Key began."""

    job: str
    asked: str
    """A digest of what was asked for."""


def _read_claim(_name: str, document: dict[str, Any]) -> ReplayClaim:
    return ReplayClaim(str(document["job"]), str(document["asked"]))


def _write_last(last: int) -> dict[str, Any]:
    return {"last": last}


def _read_last(_name: str, document: dict[str, Any]) -> int:
    return int(document["last"])


class ReplayStore:
    """All jobs. Also `core/replay/standing.ReplayStandings`."""

    def __init__(
        self,
        settings: Settings,
        broker: Broker,
        *,
        wall: Callable[[], float] = time.time,
        on_failure: Callable[[str, BaseException], None] | None = None,
        write_timeout: float = WRITE_TIMEOUT,
    ) -> None:
        """`wall` gives Unix seconds; `on_failure` is told when it died. Times in seconds."""
        self._wall = wall
        self._started = float("-inf")
        self._tasks = Tasks(on_failure)
        kinds = Kinds()
        self._log = ControlLog(
            broker, replays_topic(settings), kinds, self._tasks, wall, write_timeout, holds="replays"
        )
        self._jobs: Table[ReplayJob] = Table(self._log, "job", ReplayJob.document, read_job)
        self._claims: Table[ReplayClaim] = Table(self._log, "claim", ReplayClaim._asdict, _read_claim)
        self._sequence: Table[int] = Table(self._log, "sequence", _write_last, _read_last)
        for kind in (self._jobs.kind, self._claims.kind, self._sequence.kind):
            kinds.add(kind)

    def start(self) -> None:
        """Read and follow in the background. The topic must exist."""

        async def loaded() -> None:
            log.info("replays loaded", jobs=len(self._jobs))

        self._started = asyncio.get_running_loop().time()
        self._log.start(loaded)
        self._tasks.start(self._keep_house(), "replays housekeeping")

    async def stop(self) -> None:
        """Follow no more; writes under way end with Unavailable."""
        self._log.close()
        await self._tasks.stop()
        await self._log.stop()

    async def wait_loaded(self) -> None:
        """Wait until everything is read that was there at the start."""
        await self._log.wait_loaded()

    @property
    def loaded(self) -> bool:
        """Whether everything is read that was there at the start."""
        return self._log.loaded

    @property
    def warning(self) -> str | None:
        """What is wrong with it, in one sentence. That it is being read is not, unless it takes long."""
        if self._log.loaded or asyncio.get_running_loop().time() - self._started < _READING:
            return self._log.warning
        return self._log.warning or self._log.problem

    def check(self) -> None:
        """Raise Unavailable before everything is read, and after the stop."""
        self._log.check()

    def now_ms(self) -> int:
        """Unix milliseconds."""
        return self._log.now_ms()

    def standing(self, replay: str) -> ReplayStanding:
        """What the deliveries of this replay are to do."""
        row = self._jobs.get(replay)
        if row is None:
            return ReplayStanding.UNKNOWN if self._log.loaded else ReplayStanding.WAIT
        return _STANDINGS[row.value.state]

    def get(self, id: str) -> Row[ReplayJob] | None:  # noqa: A002 - the field's name
        """The job of this id, with its version."""
        return self._jobs.get(id)

    def ids(self) -> Sequence[str]:
        """All ids, oldest first: an id begins with when the job was made."""
        return self._jobs.names()

    def rows(self) -> list[Row[ReplayJob]]:
        """All jobs, oldest first."""
        return [row for id_ in self._jobs.names() if (row := self._jobs.get(id_)) is not None]

    async def put(self, job: ReplayJob, *, base: int) -> Row[ReplayJob]:
        """Write it in the place of version `base` (0: a new one). Raises VersionMismatch, Unavailable, TooLarge."""
        return await self._jobs.put(job.id, job, base=base)

    async def next_number(self) -> int:
        """The number of a job that begins now: no other one has it, on any replica. Raises Unavailable."""
        for _ in range(_TRIES):
            row = self._sequence.get(_LAST)
            last, base = (0, 0) if row is None else (row.value, row.version)
            try:
                return (await self._sequence.put(_LAST, last + 1, base=base)).value
            except VersionMismatch:
                continue  # another replica has begun one
        raise Unavailable("replays are begun all the time: send the request again", 1.0)

    async def claim(self, name: str, claim: ReplayClaim) -> ReplayClaim:
        """Claim a request of this name for a job, unless it is claimed: the claim that holds. Raises Unavailable."""
        row = self._claims.get(name)
        if row is None:
            try:
                row = await self._claims.put(name, claim, base=0)
            except VersionMismatch as error:
                row = self._claims.get(name)  # another replica was first
                if row is None:
                    raise Unavailable("the same request is under way: send it again", 1.0) from error
        return row.value

    async def delete(self, id: str, *, base: int) -> None:  # noqa: A002 - the field's name
        """Forget it. Raises VersionMismatch, Unavailable."""
        await self._jobs.delete(id, base=base)

    def counts(self) -> dict[str, int]:
        """How many there are in each state."""
        counts = dict.fromkeys(map(str, JobState), 0)
        for row in self.rows():
            counts[row.value.state.value] += 1
        return counts

    async def _keep_house(self) -> None:
        await self._log.wait_loaded()
        while True:
            # Any replica may do it, and the first one's word counts.
            await asyncio.sleep(_HOUSEKEEPING * (1 + 0.5 * random.random()))  # noqa: S311 - no secret
            await self.keep_house()

    async def keep_house(self) -> None:
        """Forget jobs that have been over for long, and end those that have been paused for too long."""
        now = self._wall() * 1000
        for row in self.rows():
            job = row.value
            try:
                if job.state.over and (job.ended_ms or 0) + KEPT * 1000 < now:
                    await self.delete(job.id, base=row.version)
                elif job.state is JobState.PAUSED and (job.paused_ms or 0) + PAUSED_AT_MOST * 1000 < now:
                    await self.put(
                        job.cancel(self.now_ms(), "it was paused for more than 7 days: start another one"),
                        base=row.version,
                    )
            except ControlError as error:
                log.info("a replay is looked after later", replay=job.id, reason=str(error))
        for name in list(self._claims.names()):
            claim = self._claims.get(name)
            if (
                claim is None
                or self._jobs.get(claim.value.job) is not None
                or claim.updated_ms + KEPT * 1000 > now
            ):
                continue
            try:
                await self._claims.delete(name, base=claim.version)
            except ControlError as error:
                log.info("a replay's request is forgotten later", reason=str(error))
        self._log.forget()
