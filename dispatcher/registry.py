"""The subscriptions in force: read from the YAML file, swapped in as one snapshot.

The file is read in a thread, entry by entry, and the loop sees only the result: an `Index`
that takes the old one's place between two callbacks. Parsing is Python code and holds the
interpreter's lock while it runs, so on a running dispatcher the thread works in slices of
2 ms and sleeps between them; a reload of a huge file takes longer, and deliveries go on.

A changed file is noticed by polling once a second what `stat` says of the path, links
followed. inotify was rejected: a ConfigMap is replaced by swapping a link two directories up,
network file systems don't report others' writes, and a second is soon enough.

Nobody tells whether a file that is being written is complete, and a half of it may well be valid
YAML that lacks the other half's subscriptions. So a changed file is read when it has stayed the
same for one poll, and an empty one is an error: no subscriptions at all are written as
`subscriptions: []`. A new inode is no sign of completeness either: editors make one and then write.

Rules:

1. `index` is a complete, valid snapshot at any time. A file with a mistake changes nothing.
2. Only the loop's thread replaces `index`. A thread reads files and builds; it changes nothing here.
3. An entry that didn't change keeps its `Subscription`, with whatever is cached in it.
4. A subscription disabled at run time stays so until its entry changes or the process ends.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, NamedTuple

import orjson
import structlog

from dispatcher.core.document import DocumentError, did_you_mean, stream
from dispatcher.core.netguard import Guard
from dispatcher.core.policy import RetryPolicy
from dispatcher.core.spec import Flaw, Reader, SpecError
from dispatcher.core.subscriptions import ClientCertificate, Index, Status, Subscription
from dispatcher.settings import Settings
from dispatcher.tasks import Tasks

log = structlog.get_logger(__name__)

_POLL: Final = 1.0  # seconds between two looks at the file
_SLICE: Final = 0.002  # seconds that the reading thread works at a stretch...
_PAUSE: Final = 0.004  # ...and leaves to the loop
_PIECEMEAL: Final = 100  # changed entries up to which the index is changed instead of built anew
_LISTED: Final = 100  # mistakes that are listed; whoever made more has made the same one again
_LOGGED: Final = 20
_KEY: Final = "subscriptions"


class SubscriptionsError(Exception):
    """The subscriptions file can't be used; `mistakes` are all that is wrong, each with its place."""

    def __init__(self, mistakes: Sequence[str]) -> None:
        listed = list(mistakes[:_LISTED])
        if len(mistakes) > _LISTED:
            listed.append(f"... and {len(mistakes) - _LISTED} more")
        super().__init__("\n".join(listed))
        self.mistakes = tuple(mistakes)


class _Stopped(Exception):
    """Ends the reading thread; nobody waits for it any more."""


class _Entry(NamedTuple):
    """A subscription as the file has it, and what it was read from."""

    digest: bytes | None
    subscription: Subscription


_Entries = dict[str, _Entry]

# Device, inode, size and time of the last change; None for a file that isn't there.
_Mark = tuple[int, int, int, int] | None


@dataclass(slots=True)
class _Loaded:
    entries: _Entries
    added: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    index: Index | None = None  # when so much is new that it was built at once
    statuses: Counter[Status] = field(default_factory=Counter)  # of `index`
    disabled: frozenset[str] = frozenset()  # those of the registry's own that `index` contains


def _mark(status: os.stat_result) -> _Mark:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _look(file: Path) -> _Mark:
    try:
        return _mark(file.stat())
    except OSError:
        return None


def _contents(file: Path) -> tuple[_Mark, bytes]:
    """The file, and its mark from before it was read: a change during the reading shows at the next look."""
    try:
        with file.open("rb") as opened:
            return _mark(os.fstat(opened.fileno())), opened.read()
    except OSError as error:
        raise SubscriptionsError([f"{file}: can't be read: {error.strerror or error}"]) from error


def _digest(raw: Any) -> bytes | None:
    try:
        text = orjson.dumps(raw, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)
    except TypeError:
        return None  # something orjson can't write; then it counts as changed
    return blake2b(text, digest_size=16).digest()


def _release(pieces: list[object], breathe: Callable[[], None]) -> None:
    """Free an old snapshot piece by piece: at once, 100,000 subscriptions hold the loop up for 100 ms."""
    entries = pieces[0]
    if isinstance(entries, dict):
        while entries:
            entries.popitem()
            breathe()
    while pieces:
        pieces.pop()
        breathe()


def _read(
    file: Path,
    content: bytes,
    reader: Reader,
    known: _Entries,
    breathe: Callable[[], None] | None = None,
) -> _Entries:
    """Every entry of the file; of those that are as `known` has them, the known ones. Raises SubscriptionsError."""
    entries: _Entries = {}
    lines: dict[str, int] = {}
    mistakes: list[str] = []
    listed = empty = False
    try:
        for part in stream(content, _KEY, breathe):
            line = part.lines.line
            if len(part.path) == 2:
                listed = True
                mistakes.extend(
                    f"{file}:{mistake}" for mistake in _entry(part, reader, known, entries, lines)
                )
            elif part.path == (_KEY,):
                listed = True
                if part.value != []:
                    mistakes.append(
                        f"{file}:{line}: {_KEY}: must be a list of subscriptions, one `- id: ...` each"
                    )
            elif not part.path:
                empty = part.value is None
                if not empty:
                    mistakes.append(f"{file}:{line}: must begin with `{_KEY}:` and a list below it")
                    listed = True
            elif not str(part.path[0]).startswith("x-"):
                guess = did_you_mean(str(part.path[0]), [_KEY])
                mistakes.append(f"{file}:{line}: {part.path[0]}: there is no such key{guess}")
    except DocumentError as error:
        mistakes.extend(
            f"{file}:{line}: {said}" if line else f"{file}: {said}" for line, said in error.problems
        )
        listed = True
    if not listed:
        mistakes.append(f"{file}: has no `{_KEY}:`; write `{_KEY}: []` if there are none yet")
    if mistakes:
        raise SubscriptionsError(mistakes)
    return entries


def _entry(part: Any, reader: Reader, known: _Entries, entries: _Entries, lines: dict[str, int]) -> list[str]:
    """Read one entry into `entries`, or return what is wrong with it: `line: id: field: what`."""
    raw = part.value
    line = part.lines.line
    named = raw.get("id") if isinstance(raw, dict) else None
    name = named if isinstance(named, str) and named else f"entry {part.path[1] + 1}"
    mistakes = []
    if isinstance(named, str):
        if named in lines:
            at = part.lines.find(("id",))
            mistakes.append(f"{at}: {name}: id: stands in line {lines[named]} already")
        lines.setdefault(named, line)
    digest = _digest(raw)
    old = known.get(name)
    if old is not None and digest is not None and old.digest == digest:
        entries[name] = old
        return mistakes
    try:
        subscription = reader.read(raw)
        if subscription.certificate is not None:
            _check_certificate(subscription.certificate)
    except SpecError as error:
        mistakes.extend(f"{part.lines.find(flaw.path)}: {name}: {flaw}" for flaw in error.flaws)
    else:
        entries[subscription.id] = _Entry(digest, subscription)
    return mistakes


def _check_certificate(certificate: ClientCertificate) -> None:
    """Raise SpecError unless it can be used: better now than at the first delivery."""
    try:
        # Never asked for on the terminal: an encrypted key is refused.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(*certificate, password="")
    except OSError as error:
        said = f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror or error)
        files = " with ".join(file for file in certificate if file is not None)
        raise SpecError(
            [Flaw(("client_certificate",), f"{files} can't be used (PEM, key not encrypted): {said}")]
        ) from error


def _reader(settings: Settings, guard: Guard, environ: Mapping[str, str]) -> Reader:
    retry = RetryPolicy(settings.retry.schedule, settings.retry.jitter)
    return Reader(guard, timeout=settings.delivery.timeout, retry=retry, environ=environ)


def load_file(file: Path, settings: Settings, guard: Guard, environ: Mapping[str, str]) -> list[Subscription]:
    """Every subscription of the file, in its order. Raises SubscriptionsError."""
    _, content = _contents(file)
    entries = _read(file, content, _reader(settings, guard, environ), {})
    return [entry.subscription for entry in entries.values()]


class Registry:
    """Owns the subscriptions. `reloads_ok` and `reloads_failed` count loads of the file."""

    def __init__(
        self, settings: Settings, guard: Guard, environ: Mapping[str, str], *, poll: float = _POLL
    ) -> None:
        """`poll` is in seconds. Nothing is read before `start`."""
        self.index = Index()
        self.reloads_ok = 0
        self.reloads_failed = 0
        self._settings = settings
        self._guard = guard
        self._environ = environ
        self._poll = poll
        self._file = settings.subscriptions_file
        self._entries: _Entries = {}
        self._disabled: dict[str, str] = {}  # by id, why; only of entries that haven't changed since
        self._statuses: Counter[Status] = Counter()
        self._mark: _Mark = None  # of the file as it was last read, whatever came of it
        self._complaint: bytes | None = None  # digest of what was wrong with the file the last time
        self._stopping = False
        self._lock = asyncio.Lock()
        self._tasks = Tasks()

    def counts(self) -> dict[str, int]:
        """Subscriptions by status."""
        return {status.value: self._statuses[status] for status in Status}

    async def start(self) -> None:
        """Read the file and begin to watch it. Raises SubscriptionsError."""
        if self._file is None:
            log.warning(
                "no subscriptions", hint="set subscriptions_file: without it every event is unmatched"
            )
            return
        await self._load(self._file, beside_loop=False)
        self._tasks.start(self._watch(self._file), "subscriptions file")

    async def stop(self) -> None:
        """Watch no more."""
        self._stopping = True
        await self._tasks.stop()

    async def reload(self) -> bool:
        """Read the file now, changed or not; False, and a log line, if it can't be used."""
        if self._file is None:
            log.warning("no subscriptions to reload", hint="subscriptions_file is not set")
            return True
        self._complaint = None  # whoever asks is told again
        return await self._reload(self._file)

    def disable(self, id: str, reason: str) -> None:  # noqa: A002 - the field's name
        """Deliver nothing more to it, until its entry in the file changes or the process ends."""
        subscription = self.index.get(id)
        if subscription is None or subscription.status is Status.DISABLED:
            return
        self._disabled[id] = reason
        self._put(subscription.with_status(Status.DISABLED, reason))
        log.warning(
            "subscription disabled",
            subscription=id,
            tenant=subscription.tenant,
            reason=reason,
            hint="change its entry in the subscriptions file, or restart, to enable it again",
        )

    def _put(self, subscription: Subscription) -> None:
        old = self.index.get(subscription.id)
        if old is not None:
            self._statuses[old.status] -= 1
        self._statuses[subscription.status] += 1
        self.index = self.index.replaced(subscription)

    def _remove(self, id: str) -> None:  # noqa: A002 - the field's name
        old = self.index.get(id)
        if old is not None:
            self._statuses[old.status] -= 1
            self.index = self.index.without(id)

    async def _watch(self, file: Path) -> None:
        before = self._mark
        while True:
            await asyncio.sleep(self._poll)
            mark = await asyncio.to_thread(_look, file)
            if mark not in {self._mark, before}:
                before = mark  # perhaps still being written, or just about to be put in place: look again
            elif mark != self._mark:
                await self._reload(file)
                before = self._mark

    async def _reload(self, file: Path) -> bool:
        try:
            await self._load(file, beside_loop=True)
        except SubscriptionsError as error:
            self.reloads_failed += 1
            complaint = blake2b("\n".join(error.mistakes).encode(), digest_size=16).digest()
            if complaint != self._complaint:
                log.error(  # noqa: TRY400 - the mistakes are the message; a traceback would say nothing
                    "bad subscriptions file, the old subscriptions stay",
                    file=str(file),
                    mistakes=error.mistakes[:_LOGGED],
                    mistakes_total=len(error.mistakes),
                )
            self._complaint = complaint
            return False
        except _Stopped:
            return False
        except Exception:
            # The watch must outlive whatever this was; the old subscriptions are still there.
            self.reloads_failed += 1
            log.exception("the subscriptions file could not be loaded", file=str(file))
            return False
        return True

    async def _load(self, file: Path, *, beside_loop: bool) -> None:
        async with self._lock:
            try:
                self._mark, content = await asyncio.to_thread(_contents, file)
            except SubscriptionsError:
                self._mark = None
                raise
            breathe = self._breathing(_PAUSE if beside_loop else 0.0)
            loaded = await asyncio.to_thread(
                self._prepare, file, content, dict(self._disabled), self._entries, breathe
            )
            old = self._swap(loaded)
            if old:
                await asyncio.to_thread(_release, old, breathe)
        self.reloads_ok += 1
        self._complaint = None
        log.info(
            "subscriptions loaded",
            file=str(file),
            total=len(self.index),
            added=len(loaded.added),
            changed=len(loaded.changed),
            removed=len(loaded.removed),
        )

    def _breathing(self, pause: float) -> Callable[[], None]:
        """For the thread to call often: sleeps when it has had its slice, and ends it on `stop`."""
        since = time.perf_counter()

        def breathe() -> None:
            nonlocal since
            if self._stopping:
                raise _Stopped
            if pause and time.perf_counter() - since > _SLICE:
                time.sleep(pause)
                since = time.perf_counter()

        return breathe

    def _prepare(
        self,
        file: Path,
        content: bytes,
        disabled: Mapping[str, str],
        known: _Entries,
        breathe: Callable[[], None],
    ) -> _Loaded:
        """In a thread: everything that takes time. Changes nothing."""
        reader = _reader(self._settings, self._guard, self._environ)
        entries = _read(file, content, reader, known, breathe)
        loaded = _Loaded(entries)
        for id_, entry in entries.items():
            old = known.get(id_)
            if old is None:
                loaded.added.append(id_)
            elif old is not entry:
                loaded.changed.append(id_)
        loaded.removed.extend(id_ for id_ in known if id_ not in entries)
        if len(loaded.added) + len(loaded.changed) + len(loaded.removed) > _PIECEMEAL:
            fresh = {*loaded.added, *loaded.changed}
            still = {id_: why for id_, why in disabled.items() if id_ in entries and id_ not in fresh}
            loaded.disabled = frozenset(still)
            loaded.index = Index(
                entry.subscription.with_status(Status.DISABLED, still[id_])
                if id_ in still
                else entry.subscription
                for id_, entry in entries.items()
            )
            loaded.statuses.update(subscription.status for subscription in loaded.index)
        return loaded

    def _swap(self, loaded: _Loaded) -> list[object]:
        """On the loop: put in place what was prepared. Returns what is left of the old, in pieces."""
        if self._disabled:
            for id_ in (*loaded.changed, *loaded.removed):
                self._disabled.pop(id_, None)
        old, self._entries = self._entries, loaded.entries
        if loaded.index is None:
            for id_ in loaded.removed:
                self._remove(id_)
            for id_ in (*loaded.added, *loaded.changed):
                self._put(loaded.entries[id_].subscription)
            return []
        pieces = [old, *self.index.pieces()]
        self.index = loaded.index
        self._statuses = loaded.statuses
        for id_, reason in self._disabled.items():  # those disabled while the thread was at work
            if id_ not in loaded.disabled:
                self._put(loaded.entries[id_].subscription.with_status(Status.DISABLED, reason))
        return pieces
