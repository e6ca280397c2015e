"""What has become of subscriptions at run time, as the control topic keeps it: `status:<id>`.

A status stands apart from the document: an endpoint that begins to fail doesn't change the version (the ETag) that
the owner of the subscription goes by. Subscriptions of the file have statuses too. A status names the state of the
subscription that it is about (`registry.Runtime.tag`), so a changed subscription starts over.

In: decisions of the registry (`decided`), states of the topic (`take`). Out: `Registry.set_runtime`, writes to the
log. State that this module alone writes: the decisions that the topic doesn't say yet.

Rule: a decision holds on this replica from then on until the topic says the same. Whatever the topic brings in
between is shown to the registry with the decision on top of it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import orjson
import structlog

from dispatcher.control.errors import NotFound, TooLarge, Unavailable, VersionMismatch
from dispatcher.control.log import RETRY_PAUSE, ControlLog, PendingWrite
from dispatcher.control.table import RecordKind
from dispatcher.core.control.ledger import LedgerState, Verdict
from dispatcher.core.subscription.model import Status
from dispatcher.registry.registry import Registry
from dispatcher.registry.snapshot import Runtime

log = structlog.get_logger(__name__)

_KIND: Final = "status"
_PREFIX: Final = f"{_KIND}:"
_BATCH: Final = 500  # statuses written together; those that only say "failing" at most once a second
_PAUSE: Final = 1.0
_LAST_DECISIONS: Final = 2.0


class _Decision(NamedTuple):
    """A decision of this replica that is not in the topic yet."""

    runtime: Runtime
    status: bool  # whether the status was decided,
    failing: bool  # and since when it fails


class Statuses:
    """Writes decisions to the topic, and tells the registry what the topic says."""

    def __init__(self, changes: ControlLog, registry: Registry) -> None:
        self.kind = RecordKind(_KIND, self.take)
        self._log = changes
        self._registry = registry
        self._initial: dict[str, Runtime] | None = {}  # until the registry is given all of them at once
        self._decisions: dict[str, _Decision] = {}
        self._some = asyncio.Event()  # there are decisions to write
        self._written = asyncio.Event()  # set when some are in the topic, and replaced
        registry.on_status = self.decided

    def initial(self) -> dict[str, Runtime]:
        """All that the topic said at the start, for `Registry.load_managed`. From then on each is told by itself."""
        initial, self._initial = self._initial or {}, None
        return initial

    def take(self, id: str, state: LedgerState[bytes]) -> None:  # noqa: A002 - the field's name
        """What the topic says of it now."""
        if self._initial is None:
            self._registry.set_runtime(id, self._in_force(id))
        elif (runtime := _read(state)) is not None:
            self._initial[id] = runtime

    def decided(self, id: str) -> None:  # noqa: A002 - the field's name
        """Something was decided by the registry. Called by it."""
        here = self._registry.runtime(id) or Runtime(self._registry.tag(id) or "")
        there = self._said(id) or Runtime(here.tag)
        if there.tag != here.tag:
            there = Runtime(here.tag)
        old = self._decisions.get(id)
        status = here[1:4] != there[1:4]
        failing = here.failing != there.failing
        if old is not None and old.runtime.tag == here.tag:
            status, failing = status or old.status, failing or old.failing
        self._decisions[id] = _Decision(here, status, failing)
        self._some.set()

    async def decide(self, id: str, decide: Callable[[str], None]) -> None:  # noqa: A002 - the field's name
        """Have the registry decide something, and wait until the topic says so. Raises NotFound, Unavailable."""
        self._log.check()
        if id not in self._registry:
            raise NotFound(f"there is no subscription {id}")
        decide(id)
        try:
            async with asyncio.timeout(self._log.write_timeout):
                while id in self._decisions:
                    await self._written.wait()
        except TimeoutError as error:
            raise self._log.away() from error

    async def forget(self, id: str) -> None:  # noqa: A002 - the field's name
        """The subscription is deleted: delete its status too."""
        status = self._log.present(_PREFIX + id)
        if status is not None and not self._registry.in_file(id):
            with contextlib.suppress(VersionMismatch, Unavailable):
                await self._log.change(_PREFIX + id, status.version, None)

    async def flush(self) -> None:
        """Wait a moment until each decided status is written. The process is about to stop."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_DECISIONS):
                while self._log.loaded and self._urgent():
                    await self._written.wait()

    async def run(self) -> None:
        """Write decisions until cancelled."""
        await self._log.wait_loaded()
        while True:
            if not self._decisions:
                await self._some.wait()
            self._some.clear()
            chosen = (self._urgent() or list(self._decisions))[:_BATCH]
            try:
                await self._write({id_: self._decisions[id_] for id_ in chosen})
            except (Unavailable, TooLarge) as error:
                log.warning(
                    "statuses can't be kept yet, trying again",
                    subscriptions=len(self._decisions),
                    error=str(error),
                )
                await asyncio.sleep(2 * RETRY_PAUSE)
            # A notice of failure can wait: however many endpoints fail, it is one batch a second.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PAUSE):
                    while not self._urgent():
                        self._some.clear()
                        await self._some.wait()

    def _urgent(self) -> list[str]:
        """Whose status was decided."""
        return [id_ for id_, decision in self._decisions.items() if decision.status]

    async def _write(self, decisions: Mapping[str, _Decision]) -> None:
        """Have the topic say what was decided; what somebody else changed meanwhile stays to be written."""
        writes: list[PendingWrite] = []
        written: list[str] = []
        for id_ in decisions:
            wanted = self._in_force(id_)
            state = self._log.present(_PREFIX + id_)
            if wanted == self._said(id_) or (wanted is None and state is None):
                written.append(id_)
                continue
            value = None if wanted is None else orjson.dumps(wanted._asdict())
            writes.append(PendingWrite(_PREFIX + id_, 0 if state is None else state.version, value))
        if writes:
            verdicts = await self._log.write_all(writes)
            written += [
                write.key.removeprefix(_PREFIX)
                for write, verdict in zip(writes, verdicts, strict=True)
                if verdict is not Verdict.IGNORED
            ]
        for id_ in written:
            if self._decisions.get(id_) is decisions[id_]:
                del self._decisions[id_]
        done, self._written = self._written, asyncio.Event()
        done.set()

    def _said(self, id: str) -> Runtime | None:  # noqa: A002 - the field's name
        """The status of the topic."""
        state = self._log.present(_PREFIX + id)
        return None if state is None else _read(state)

    def _in_force(self, id: str) -> Runtime | None:  # noqa: A002 - the field's name
        """The status of the topic, with the decision of this replica on top of it."""
        said = self._said(id)
        decision = self._decisions.get(id)
        if decision is None:
            return said
        decided = decision.runtime
        runtime = said if said is not None and said.tag == decided.tag else Runtime(decided.tag)
        if decision.status:
            runtime = runtime._replace(
                status=decided.status, reason=decided.reason, since=decided.since, text=decided.text
            )
        if decision.failing:
            runtime = runtime._replace(failing=decided.failing)
        return None if runtime.blank else runtime


def _read(state: LedgerState[bytes]) -> Runtime | None:
    if state.value is None:
        return None
    try:
        raw = orjson.loads(state.value)
        status = None if raw["status"] is None else Status(raw["status"])
        return Runtime(raw["tag"], status, raw["reason"], raw["since"], raw["failing"], raw.get("text"))
    except (ValueError, KeyError, TypeError) as error:
        log.error("a status in the topic can't be read", error=repr(error))  # noqa: TRY400 - nothing of ours is broken
        return None
