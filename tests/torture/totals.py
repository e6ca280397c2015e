"""`python -m tests.torture.totals FILE...`: what the runs came to that were reported with `--report`.

Of a seed that was run several times the last run counts, as after mending what an earlier one found; how many are
superseded so is said.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

HEAD = (
    "| `--broker` | traits | seeds | with parking | 30 s stops | deliveries owed | lost | duplicates | bound | oldest | findings |\n"
    "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
)
_LONG_STOP = 30.0


def read(files: Iterable[Path]) -> list[dict[str, Any]]:
    """Every line, in the order in which the runs ended."""
    lines = [orjson.loads(line) for file in files for line in file.read_bytes().splitlines()]
    return sorted(lines, key=lambda each: each["at"])


def last(runs: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last run of each seed of each broker, with the same traits."""
    found = {(run["broker"], tuple(run["traits"]), run["seed"]): run for run in runs}
    return [run for _, run in sorted(found.items())]


def ranges(seeds: Sequence[int]) -> str:
    """Ascending seeds as `--seeds` takes them: `1-3,7`."""
    parts: list[list[int]] = []
    for seed in seeds:
        if parts and parts[-1][1] == seed - 1:
            parts[-1][1] = seed
        else:
            parts.append([seed, seed])
    return ",".join(f"{first}-{end}" if first != end else f"{first}" for first, end in parts)


def row(name: str, traits: str, runs: Sequence[Mapping[str, Any]]) -> str:
    total = {key: sum(run[key] for run in runs) for key in ("owed", "lost", "duplicates", "bound")}
    return (
        f"| `{name}` | {traits} | {ranges(sorted(run['seed'] for run in runs))} | {sum(run['parking'] for run in runs)}"
        f" | {sum(run['longest_stop'] >= _LONG_STOP for run in runs)} | {total['owed']:,} | {total['lost']}"
        f" | {total['duplicates']:,} | {total['bound']:,} | {max(run['oldest'] for run in runs):.1f} s"
        f" | {sum(len(run['findings']) for run in runs)} |"
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture.totals", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    runs = read(parser.parse_args().files)
    counted = last(runs)
    print(HEAD)
    for broker in sorted({run["broker"] for run in counted}):
        of_it = [run for run in counted if run["broker"] == broker]
        plain = [run for run in of_it if not run["traits"]]
        if plain:
            print(row(broker, "none", plain))
        if len(plain) < len(of_it):
            print(row(broker, "some", [run for run in of_it if run["traits"]]))
    for trait in sorted({trait for run in counted for trait in run["traits"]}):
        print(row("any", trait, [run for run in counted if trait in run["traits"]]))
    causes, parked = Counter[str](), Counter[str]()
    for run in counted:
        causes.update(run["causes"])
        parked.update(run["parked"])
    print(f"\ncommits: {dict(Counter(run['commit'] for run in counted))}")
    print(f"\n{len(counted)} schedules, {sum(run['seconds'] for run in counted) / 3600:.1f} h")
    print(f"duplicates by cause: {dict(causes.most_common())}")
    print(f"records in retry topics by reason: {dict(parked.most_common())}")
    if audited := [run["audited"] for run in counted if run.get("audited")]:
        print(f"{sum(audited):,} deliveries in {len(audited)} histories compared, each history twice")
    stages = Counter[str]()
    for run in counted:
        stages.update(run["stages"])
    print(f"seconds by stage: { {name: round(seconds) for name, seconds in stages.most_common()} }")
    if len(runs) > len(counted):
        print(f"{len(runs) - len(counted)} earlier runs of the same seeds are not counted")
    for run in counted:
        for finding in run["findings"]:
            print(f"FINDING {run['broker']} {run['seed']}: {finding[:500]}")
    return 1 if any(run["findings"] for run in counted) else 0


if __name__ == "__main__":
    sys.exit(main())
