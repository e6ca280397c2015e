"""What each trick for speed gains: `python -m benchmarks toggles`.

A trick stays only while it gains 2 % of the CPU of a delivery in the case that it is for. For each of them, this makes a copy of the package without
the trick, compiles both (`--pure`: neither), and runs the case with and without it in turns (`engine_case.py`). The order changes from
round to round; the median of the rounds' ratios is told. Above 1, the trick gains.

Where a machine is shared, its clock doesn't tell 2 %. `--counted` runs each side once under callgrind and counts instructions and the misses of a
simulated cache instead: the same figures each time, on any machine. What they take together is estimated (`Counted.cycles`).

Not told here: requests that leave together (`Shared.write_soon`). They save system calls, of which this has none: `against` measures those.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks.engine_case import CASES
from benchmarks.harness import ROOT, CannotRun, Section, Table, in_turns, median, require, spread
from hatch_build import compile_into

NEEDED: Final = 1.02
_ROUNDS: Final = 7
_DELIVERIES: Final = 50_000


class Edit(NamedTuple):
    """One replacement in a file of the package. The text stands there exactly once."""

    file: str
    text: str
    instead: str


class Toggle(NamedTuple):
    """One trick: the case that it is for, and what the package is without it."""

    name: str
    case: str
    edits: tuple[Edit, ...]


TOGGLES: Final = (
    Toggle(
        "objects of a host are fetched ahead (`_prefetch`)",
        "hosts",
        (Edit("delivery/sending.py", "        if _PREFETCHES:\n            _prefetch(owed)\n", ""),),
    ),
    Toggle(
        "attempts are kept four at a time (`EndpointHealth._fresh0-2`)",
        "subscriptions",
        (
            Edit(
                "core/endpoint/health.py",
                "        self._count = before + 1\n        match before & 3:\n",
                "        self._count = before + 1\n"
                "        if before < KEPT:\n            self._attempts.append(seconds)\n"
                "        else:\n            self._attempts[before % KEPT] = seconds\n"
                "        return\n        match before & 3:\n",
            ),
        ),
    ),
    Toggle(
        "the connection used last stands in the pool itself (`Pool._last`)",
        "hosts",
        (
            Edit(
                "transport/pool.py",
                "        connection = self._last\n        if connection is None:\n            self.resend(exchange)\n            return\n"
                "        self._take_last()\n",
                "        if not self._others:\n            self.resend(exchange)\n            return\n"
                "        connection = self._others.pop()\n        self._shared.idle -= 1\n",
            ),
            Edit(
                "transport/pool.py",
                "        if self._last is not None:\n            self._others.append(self._last)\n            self._spare += 1\n"
                "        self._last = connection\n",
                "        self._others.append(connection)\n",
            ),
        ),
    ),
    Toggle(
        "an answer of one type is kept without a dictionary (`_Answers`)",
        "subscriptions",
        (
            Edit(
                "core/subscription/index.py",
                "        if self._type == type:\n            one = self._one\n",
                "        if self._more is None:\n            self._more = {self._type: self._answer if self._one is None else (self._one,)}\n"
                "        if False:\n            one = self._one\n",
            ),
        ),
    ),
    Toggle(
        "lanes without shares have one dictionary together (`_NO_SHARES`)",
        "hosts",
        (
            Edit(
                "core/endpoint/turns.py",
                "            self._shares = NO_SHARES\n            if self._mixed:\n",
                "            del self._shares[share.key]\n            if self._mixed:\n",
            ),
            Edit(
                "core/endpoint/turns.py",
                "        if self._shares:\n            self._shares[key] = share\n",
                "        if self._shares is not NO_SHARES:\n            self._shares[key] = share\n",
            ),
        ),
    ),
    Toggle(
        "one parser reads the responses that come in one piece (`WholeReader`)",
        "hosts",
        (
            Edit(
                "transport/connection.py",
                "            if not self._fresh:\n                known",
                "            if False:\n                known",
            ),
            Edit(
                "transport/connection.py",
                "            if len(data) <= SLICE and whole.read(data):",
                "            if False:",
            ),
        ),
    ),
    Toggle(
        "known responses are not parsed again (`WholeReader.known`)",
        "plain",
        (
            Edit(
                "transport/connection.py",
                "            if not self._fresh:\n                known",
                "            if False:\n                known",
            ),
        ),
    ),
    Toggle(
        "the pool is remembered by the lane",
        "hosts",
        (
            Edit(
                "delivery/sending.py",
                "            elif pool is None or pool.dropped:\n                lane.pool = self._transport.send(subscription.origin, delivery)\n",
                "            elif True:\n                self._transport.send(subscription.origin, delivery)\n",
            ),
        ),
    ),
    Toggle(
        "deliveries that can go at once don't enter the queue (`Lane.pass_through`)",
        "plain",
        (
            Edit(
                "delivery/sending.py",
                "        if self.gate and fairness.attempts",
                "        if False and fairness.attempts",
            ),
        ),
    ),
    Toggle(
        "a subscription is looked for only where the index has changed",
        "subscriptions",
        (
            Edit(
                "delivery/sending.py",
                "        if delivery.serial != index.serial or subscription",
                "        if True or subscription",
            ),
        ),
    ),
    Toggle(
        "HMAC of two hashes fed with the padded keys (`signing._digest`)",
        "plain",
        (
            Edit("core/request/signing.py", "import hashlib\n", "import hashlib\nimport hmac\n"),
            Edit(
                "core/request/signing.py",
                "    inner = _SHA256.copy()\n",
                '    return hmac.digest(pads[:_BLOCK].translate(_INNER), prefix + body, "sha256")\n    inner = _SHA256.copy()\n',
            ),
        ),
    ),
    Toggle(
        "key and head of a request are one piece of memory (`Template.ready`)",
        "subscriptions",
        (
            Edit("core/request/build.py", '"path", "ready"', '"pads", "path", "ready"'),
            Edit(
                "core/request/build.py",
                "        self.ready = pads + head\n",
                "        self.pads = pads\n        self.ready = head\n",
            ),
            Edit("core/request/build.py", "        first = ready[PADS:]\n", ""),
            Edit("core/request/build.py", "v1_line(ready, ", "v1_line(parts.pads, "),
        ),
    ),
    Toggle(
        "times are put together of ready parts (`times.rfc3339_ascii`)",
        "plain",
        (
            Edit(
                "core/text/times.py",
                "    seconds = moment // 1000\n    minute",
                '    text = (_EPOCH + timedelta(milliseconds=moment)).isoformat(timespec="milliseconds")\n'
                '    return text[:-6].encode("ascii") + b"Z"\n    seconds = moment // 1000\n    minute',
            ),
        ),
    ),
    Toggle(
        "an envelope's routing fields alone become objects (`envelope.py`)",
        "plain",
        (
            Edit(
                "core/event/decode.py",
                "    kind, event_id, tenant, created, time = _FIELDS_OF(_routing_fields(value, _DECODE_ENVELOPE))\n",
                "    loads(value)\n"
                "    kind, event_id, tenant, created, time = _FIELDS_OF(_routing_fields(value, _DECODE_ENVELOPE))\n",
            ),
            Edit(
                "core/event/decode.py",
                "from hashlib import blake2b\n",
                "from hashlib import blake2b\nfrom orjson import loads\n",
            ),
        ),
    ),
)


def copy_without(toggle: Toggle | None, folder: Path) -> Path:
    """A copy of the package (and what compiles it) in the folder, without the trick; with all of them for None. Raises CannotRun."""
    shutil.copytree(ROOT / "dispatcher", folder / "dispatcher", ignore=shutil.ignore_patterns("__pycache__"))
    for edit in () if toggle is None else toggle.edits:
        file = folder / "dispatcher" / edit.file
        source = file.read_text()
        if source.count(edit.text) != 1:
            raise CannotRun(
                f"the text of a toggle stands {source.count(edit.text)} times in {edit.file}: {edit.text!r}"
            )
        file.write_text(source.replace(edit.text, edit.instead))
    return folder


def site_of(toggle: Toggle | None, folder: Path, *, compiled: bool) -> Path:
    """What to put on the path."""
    folder.mkdir()
    copy_without(toggle, folder)
    if compiled:
        with tempfile.TemporaryDirectory(prefix="bench-toggle-") as build:
            for made in compile_into(folder, Path(build)):
                target = folder / made.relative_to(Path(build, "lib"))
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(made, target)
    return folder


def _environment(site: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join((str(site), str(ROOT)))}


def engine_cost(site: Path, *arguments: str) -> float:
    """Microseconds of CPU a delivery, as `engine_case.py` says with these arguments. Raises CannotRun."""
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.engine_case", *arguments],
        cwd=site,  # before the installed package
        env=_environment(site),
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode:
        raise CannotRun(f"{' '.join(arguments)}: {ran.stderr.strip()[-2000:]}")
    return float(ran.stdout)


class Counted(NamedTuple):
    """What callgrind counts of a delivery: its instructions, and what the simulated caches don't have."""

    instructions: float
    near: float
    """Misses of the first level, of instructions and data."""
    far: float
    """Of these, those that go to memory."""

    @property
    def cycles(self) -> float:
        """An estimate: two instructions in a cycle, ten cycles for the next level of the cache, 250 (some 80 ns) for memory."""
        return self.instructions / 2 + 10 * self.near + 250 * self.far


_CACHES: Final = ("--I1=32768,8,64", "--D1=32768,8,64", "--LL=8388608,16,64")
"""What is usual: 32 KiB each for instructions and data, and a process's part of the last level."""
_EVENTS: Final = re.compile(r"^events: (.+)$", re.MULTILINE)
_TOTALS: Final = re.compile(r"^totals: ([\d ]+)$", re.MULTILINE)


def engine_counts(site: Path, case: str, deliveries: int) -> Counted:
    """What a delivery of the case takes, by callgrind. Raises CannotRun."""
    with tempfile.TemporaryDirectory(prefix="bench-counts-") as folder:
        out = Path(folder, "out")
        ran = subprocess.run(
            [
                *("valgrind", "--tool=callgrind", "--instr-atstart=no", "--cache-sim=yes", *_CACHES),
                f"--callgrind-out-file={out}",
                *(sys.executable, "-m", "benchmarks.engine_case", case, str(deliveries), "counted"),
            ],
            cwd=site,
            env=_environment(site) | {"PYTHONHASHSEED": "0"},
            capture_output=True,
            text=True,
            check=False,
        )
        if ran.returncode:
            raise CannotRun(f"{case}: {ran.stderr.strip()[-2000:]}")
        found = out.read_text()
    events, totals = _EVENTS.search(found), _TOTALS.search(found)
    if events is None or totals is None:
        raise CannotRun(f"{case}: callgrind has counted nothing")
    names = events[1].split()
    # Zeros at the end are left out.
    of = dict.fromkeys(names, 0) | dict(zip(names, map(int, totals[1].split()), strict=False))
    count = int(ran.stdout)
    near = of["I1mr"] + of["D1mr"] + of["D1mw"]
    far = of["ILmr"] + of["DLmr"] + of["DLmw"]
    return Counted(of["Ir"] / count, near / count, far / count)


def run_counted(
    command: str, *, quick: bool, compiled: bool, names: Sequence[str] = (), count: int | None = None
) -> Section:
    """Each toggle whose name contains one of `names` (all), counted with and without it."""
    require("valgrind")
    deliveries = count or (1_000 if quick else 10_000)
    section = Section(f"Toggles, counted, {'compiled' if compiled else 'not compiled'}", command)
    table = Table(
        (
            "without",
            "case",
            "instructions with, a delivery",
            "without",
            "misses of the first level with",
            "without",
            "of memory with",
            "without",
            "estimated, ratio",
            f"earns its place ({NEEDED})",
        )
    )
    known: dict[str, Counted] = {}
    with tempfile.TemporaryDirectory(prefix="bench-toggles-") as name:
        whole = site_of(None, Path(name, "whole"), compiled=compiled)
        for number, toggle in enumerate(_chosen(names)):
            case = toggle.case
            with_it = known[case] = known.get(case) or engine_counts(whole, case, deliveries)
            site = site_of(toggle, Path(name, f"without-{number}"), compiled=compiled)
            without = engine_counts(site, case, deliveries)
            shutil.rmtree(site)
            ratio = without.cycles / with_it.cycles
            print(f"  {toggle.name}: {ratio:.3f}", flush=True)
            table.add(
                toggle.name,
                case,
                *(f"{value:,.0f}" for pair in zip(with_it, without, strict=True) for value in pair),
                f"{ratio:.3f}",
                "yes" if ratio >= NEEDED else "no",
            )
    section.parts.insert(0, table)
    section.add(
        f"{deliveries:,} deliveries, or all subscriptions once, after as many that count nothing. Estimated: two instructions in a cycle, ten cycles for a miss of the first level,"
        f" 250 for one that goes to memory ({' '.join(_CACHES)})."
    )
    return section


def _chosen(names: Sequence[str]) -> list[Toggle]:
    chosen = [toggle for toggle in TOGGLES if not names or any(name in toggle.name for name in names)]
    if not chosen:
        raise CannotRun(f"no toggle is named {' or '.join(names)}")
    return chosen


def run(
    command: str,
    *,
    quick: bool,
    compiled: bool,
    names: Sequence[str] = (),
    count: int | None = None,
    runs: int | None = None,
) -> Section:
    """Each toggle whose name contains one of `names` (all), with and without it."""
    deliveries = count or (10_000 if quick else _DELIVERIES)
    rounds = runs or (2 if quick else _ROUNDS)
    chosen = _chosen(names)
    section = Section(f"Toggles, {'compiled' if compiled else 'not compiled'}", command)
    table = Table(
        (
            "without",
            "case",
            "us with",
            "us without",
            "ratio by round",
            "median",
            f"earns its place ({NEEDED})",
        )
    )
    with tempfile.TemporaryDirectory(prefix="bench-toggles-") as name:
        whole = site_of(None, Path(name, "whole"), compiled=compiled)
        for number, toggle in enumerate(chosen):
            without = site_of(toggle, Path(name, f"without-{number}"), compiled=compiled)
            sides = {"with": whole, "without": without}
            seen = in_turns(
                tuple(sides),
                rounds,
                lambda side, sides=sides, case=toggle.case: engine_cost(  # type: ignore[misc]
                    sides[side], case, str(deliveries), "3"
                ),
            )
            ratios = [off / on for on, off in zip(seen["with"], seen["without"], strict=True)]
            print(f"  {toggle.name}: {median(ratios):.3f}", flush=True)
            table.add(
                toggle.name,
                toggle.case,
                spread(seen["with"], lambda value: f"{value:.2f}"),
                spread(seen["without"], lambda value: f"{value:.2f}"),
                spread(ratios, lambda value: f"{value:.3f}"),
                f"{median(ratios):.3f}",
                "yes" if median(ratios) >= NEEDED else "no",
            )
            shutil.rmtree(without)
    section.parts.insert(0, table)
    section.add(
        f"{rounds} rounds each, {deliveries:,} deliveries or all subscriptions once. Cases: {', '.join(CASES)}."
    )
    return section
