"""What a run came to: a line of a table, and one of JSON."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import orjson

from tests.torture.schedule import Kind, Schedule


@dataclass
class Report:
    """What a run came to."""

    broker: str
    schedule: Schedule
    events: int = 0
    owed: int = 0
    lost: int = 0
    excused: int = 0  # expired before they were delivered, and the daemon said so
    duplicates: int = 0
    bound: int = 0
    oldest: float = 0.0  # seconds before its trouble that the oldest duplicate had been paid
    causes: Counter[str] = field(default_factory=Counter)  # of duplicates, by kind of trouble
    dead: int = 0
    audited: int = 0  # deliveries of the history that were compared with the endpoints' record
    parked: Counter[str] = field(default_factory=Counter)  # records in retry topics, by why
    healed_after: float = 0.0  # seconds from the end of the faults to the complete ledger
    seconds: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)  # seconds that each took
    findings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    folder: Path = Path()
    commit: str = ""  # what was run

    HEAD = (
        "| broker | seed | traits | events | owed | lost | duplicates | bound | explained by | oldest s | dead | healed s | all s"
        " | findings |\n"
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: |"
    )

    def __str__(self) -> str:
        return (
            f"| {self.broker} | {self.schedule.seed} | {', '.join(sorted(self.schedule.traits)) or '-'} | {self.events} | {self.owed} | {self.lost} | {self.duplicates}"
            f" | {self.bound} | {', '.join(f'{kind} {n}' for kind, n in sorted(self.causes.items())) or '-'}"
            f" | {self.oldest:.1f} | {self.dead} | {self.healed_after:.1f} | {self.seconds:.1f} | {len(self.findings)} |"
        )

    def line(self) -> bytes:
        """For `totals.py`: one line of JSON."""
        schedule = self.schedule
        return orjson.dumps(
            {
                "broker": self.broker,
                "seed": schedule.seed,
                "at": datetime.now(UTC).isoformat(timespec="seconds"),
                "schedule": str(schedule),
                "parking": schedule.parking,
                "traits": sorted(schedule.traits),
                "commit": self.commit,
                "longest_stop": max((f.lasts for f in schedule.faults if f.kind is Kind.STOP), default=0.0),
                "events": self.events,
                "owed": self.owed,
                "lost": self.lost,
                "excused": self.excused,
                "duplicates": self.duplicates,
                "bound": self.bound,
                "oldest": round(self.oldest, 2),
                "causes": self.causes,
                "dead": self.dead,
                "audited": self.audited,
                "parked": self.parked,
                "healed_after": round(self.healed_after, 1),
                "seconds": round(self.seconds, 1),
                "stages": {name: round(seconds, 1) for name, seconds in self.stages.items()},
                "findings": self.findings,
            },
            option=orjson.OPT_APPEND_NEWLINE,
        )
