"""What a thread does for the registry: it reads the file, compares, and builds the next snapshot. It changes nothing of the registry.

Python code holds the interpreter's lock while it runs. On a running dispatcher the thread works in slices of 2 ms and
sleeps between them, so that deliveries go on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from dispatcher.core.subscription.spec import SpecReader
from dispatcher.registry.file import Entries, read_entries
from dispatcher.registry.snapshot import Managed, Runtime, Snapshot, build

_SLICE: Final = 0.002  # seconds that the thread works at a stretch
_PIECEMEAL: Final = 100  # changed entries up to which the index is changed instead of built anew


class LoadingStopped(Exception):
    """Ends the thread: the registry has stopped."""


@dataclass(slots=True)
class Loaded:
    """A file that was read, and how it differs from the entries before it."""

    entries: Entries
    added: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    built: Snapshot | None = None
    """The next snapshot, where so much has changed that it was built at once."""


def breathing(stopping: Callable[[], bool], pause: float) -> Callable[[], None]:
    """For the thread to call often: sleeps for `pause` seconds after each slice; raises LoadingStopped once `stopping()`."""
    since = time.perf_counter()

    def breathe() -> None:
        nonlocal since
        if stopping():
            raise LoadingStopped
        if pause and time.perf_counter() - since > _SLICE:
            time.sleep(pause)
            since = time.perf_counter()

    return breathe


def prepare(
    file: Path,
    content: bytes,
    reader: SpecReader,
    known: Entries,
    managed: Mapping[str, Managed],
    runtimes: Mapping[str, Runtime],
    breathe: Callable[[], None],
    *,
    at_once: bool = False,
) -> Loaded:
    """Everything that takes time. `at_once`: no deliveries wait meanwhile. Raises SubscriptionsError."""
    entries = read_entries(file, content, reader, known, breathe, at_once=at_once)
    loaded = Loaded(entries)
    for id_, entry in entries.items():
        old = known.get(id_)
        if old is None:
            loaded.added.append(id_)
        elif old is not entry:
            loaded.changed.append(id_)
    loaded.removed.extend(id_ for id_ in known if id_ not in entries)
    if len(loaded.added) + len(loaded.changed) + len(loaded.removed) > _PIECEMEAL:
        stale = {*loaded.changed, *loaded.removed}
        still = {id_: runtime for id_, runtime in runtimes.items() if id_ not in stale}
        loaded.built = build(entries, managed, still, breathe)
    return loaded
