"""The real daemon, as processes, through a schedule of faults, and a ledger that shows what was lost.

A producer writes events with known ids while replicas die, freeze, leave and come back, the broker is killed, and
relays cut replicas off from it; traits (`traits.py`) add to what is owed, and change topics and subscriptions meanwhile. Then everything
heals, and the run waits until the ledger is complete and everything is committed. `run.py` says what counts.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from pathlib import Path

from tests.torture.endpoints import Endpoints
from tests.torture.on_kafka import Ground, KafkaRun, kafka_ground
from tests.torture.on_sqlite import EmbeddedRun, small_disk
from tests.torture.report import Report
from tests.torture.schedule import Schedule
from tests.torture.store import HistoryServer
from tests.torture.subscribers import Sizes

__all__ = ["Ground", "Report", "kafka_ground", "torture"]


async def torture(
    schedule: Schedule,
    folder: Path,
    ground: Ground | None,
    *,
    mutant: str | None = None,
    store: HistoryServer | None = None,
) -> Report:
    """One run: on Kafka, or without a ground on the embedded broker; `mutant` names a daemon of mutants.py.

    `store` keeps the history; without one SQLite does.
    """
    report = Report(kind_of(ground), schedule, folder=folder, commit=_commit())
    begin = time.monotonic()
    patience = Sizes.of(schedule.seed, schedule.traits).patience
    async with Endpoints(schedule.seed, patience) as endpoints:
        if ground is not None:
            await _play(KafkaRun(report, endpoints, folder, ground, mutant, store), store)
        else:
            small = Path(tempfile.mkdtemp(prefix="torture-", dir=folder))
            with small_disk(small, larger=bool(schedule.traits)) as disk:
                await _play(EmbeddedRun(report, endpoints, folder, disk, mutant, store), store)
    report.seconds = time.monotonic() - begin
    return report


async def _play(run: KafkaRun | EmbeddedRun, store: HistoryServer | None) -> None:
    if store is not None:
        await store.make(run.schema)
    await run()


def kind_of(ground: Ground | None) -> str:
    if ground is None:
        return "sqlite"
    return "kafka" if ground.relays else "replicated"


def _commit() -> str:
    """What is checked out, if that can be told."""
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip()
