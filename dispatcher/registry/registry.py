"""The subscriptions in force: from the YAML file and from the API, swapped in as one snapshot.

Three sources make the snapshot: the entries of the file, the subscriptions that the API manages
(`control/store.py` brings them from the topic), and what has become of either at run time: disabled
and why, failing since when. An id that both have is the file's: whoever can write the file runs the
place, and two sources that overwrite each other would let the last writer win by chance.

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
4. What `index` says of an id follows from the three sources alone (`_effective`). Whoever changes one of them
   refreshes the id; one that is changed while a thread builds is refreshed when its work has been swapped in.
5. A `Runtime` is about one state of a subscription, named by its tag: the digest of the file's entry, or what the
   API's was created as. With another tag it says nothing, so that a changed entry starts over.
6. `on_status` is told of what is decided here (`disable`, `note_failing`...), never of what `set_runtime` brings.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import stat
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, NamedTuple

import orjson
import structlog

from dispatcher.core.flaws import Flaw, FlawedError
from dispatcher.core.request.netguard import Guard
from dispatcher.core.retry.policy import RetryPolicy
from dispatcher.core.subscription.index import ClientCertificate, Index, Status, Subscription
from dispatcher.core.subscription.spec import Reader
from dispatcher.core.text.yaml_document import DocumentError, did_you_mean, stream
from dispatcher.runtime.tasks import Tasks
from dispatcher.settings.groups import Settings

log = structlog.get_logger(__name__)

MAX_FILE: Final = 512 << 20
"""Bytes of the subscriptions file: some two million subscriptions."""

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


class Runtime(NamedTuple):
    """What has become of a subscription while it ran. Times in Unix seconds."""

    tag: str
    """The state of the subscription that this is about (rule 5)."""
    status: Status | None = None
    """`disabled`, or `active` for one that passed its validation; None: as it is written."""
    reason: str | None = None
    since: float | None = None
    """When `status` was set."""
    failing: float | None = None
    """Since when there is nothing but failures, as far as that was worth noting."""

    @property
    def blank(self) -> bool:
        """Whether it says nothing."""
        return self.status is None and self.failing is None


class Managed(NamedTuple):
    """A subscription of the API's, and the tag of what it was created as."""

    subscription: Subscription
    tag: str


class _Entry(NamedTuple):
    """A subscription as the file has it, and what it was read from."""

    digest: bytes | None
    subscription: Subscription

    @property
    def tag(self) -> str:
        """What names this state of it; one that has no digest has the same name always."""
        return "" if self.digest is None else self.digest.hex()


_Entries = dict[str, _Entry]

# Device, inode, size and time of the last change; None for a file that isn't there.
_Mark = tuple[int, int, int, int] | None


class _Built(NamedTuple):
    snapshot: Index
    statuses: Counter[Status]


@dataclass(slots=True)
class _Loaded:
    entries: _Entries
    added: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    built: _Built | None = None  # when so much is new that it was built at once


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
        # Without O_NONBLOCK opening a FIFO waits for a writer, perhaps for ever, and no file is read again.
        with open(file, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as opened:
            status = os.fstat(opened.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise SubscriptionsError([f"{file}: must be a regular file, and is {_kind(status.st_mode)}"])
            content = opened.read(MAX_FILE + 1)
    except OSError as error:
        raise SubscriptionsError([f"{file}: can't be read: {error.strerror or error}"]) from error
    if len(content) > MAX_FILE:
        raise SubscriptionsError(
            [
                f"{file}: is larger than {MAX_FILE >> 20} MiB, the most that is read: subscriptions can be made by the API too"
            ]
        )
    return _mark(status), content


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a directory"
    return "a FIFO" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"


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
    except FlawedError as error:
        mistakes.extend(f"{part.lines.find(flaw.path)}: {name}: {flaw}" for flaw in error.flaws)
    else:
        entries[subscription.id] = _Entry(digest, subscription)
    return mistakes


def _check_certificate(certificate: ClientCertificate) -> None:
    """Raise FlawedError unless it can be used: better now than at the first delivery."""
    for path in certificate:
        # Reading a FIFO would wait for its writer, and hold up the reading of the file.
        if path is not None and os.path.exists(path) and not os.path.isfile(path):  # noqa: PTH110, PTH113 - pathlib's raise
            raise FlawedError([Flaw(("client_certificate",), f"{path} is no regular file")])
    try:
        # Never asked for on the terminal: an encrypted key is refused.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(*certificate, password="")
    except OSError as error:
        said = f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror or error)
        files = " with ".join(file for file in certificate if file is not None)
        raise FlawedError(
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
        self,
        settings: Settings,
        guard: Guard,
        environ: Mapping[str, str],
        *,
        poll: float = _POLL,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`poll` is in seconds; `wall` gives Unix seconds. Nothing is read before `start`."""
        self.index = Index()
        self.reloads_ok = 0
        self.reloads_failed = 0
        self.on_status: Callable[[str], None] | None = None
        self.on_disabled: Callable[[Subscription, str], None] | None = None  # told what `disable` has done
        """Told the id of each subscription of which something was decided here; `runtime` says what."""
        self._settings = settings
        self._guard = guard
        self._environ = environ
        self._poll = poll
        self._wall = wall
        self._file = settings.subscriptions_file
        self._entries: _Entries = {}
        self._file_ids: tuple[_Entries, list[str]] | None = None  # sorted, and what they were sorted of
        self._managed: dict[str, Managed] = {}
        self._runtimes: dict[str, Runtime] = {}
        self._touched: set[str] | None = None  # ids changed while a thread builds
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
            log.info(
                "no subscriptions file", hint="subscriptions come over the API, or set subscriptions_file"
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

    # What becomes of subscriptions at run time.

    def disable(self, id: str, reason: str) -> None:  # noqa: A002 - the field's name
        """Deliver nothing more to it, until its entry in the file changes or somebody enables it."""
        subscription = self.index.get(id)
        if subscription is None or subscription.status is Status.DISABLED:
            return
        self._decide(id, self._known(id)._replace(status=Status.DISABLED, reason=reason, since=self._wall()))
        if self.on_disabled is not None:
            self.on_disabled(subscription, reason)
        log.warning(
            "subscription disabled",
            subscription=id,
            tenant=subscription.tenant,
            reason=reason,
            hint="enable it through the API (`dispatcher subscriptions enable`), or change its entry in the subscriptions file",
        )

    def enable(self, id: str) -> None:  # noqa: A002 - the field's name
        """Let it be what it is written as, whatever has become of it at run time."""
        known = self._known(id)
        if not known.blank:
            self._decide(id, Runtime(known.tag))

    def note_validated(self, id: str) -> None:  # noqa: A002 - the field's name
        """Its endpoint has agreed: `pending` ends."""
        known = self._known(id)
        if id in self and known.status is None:
            self._decide(id, known._replace(status=Status.ACTIVE, since=self._wall()))

    def failing(self, id: str) -> float | None:  # noqa: A002 - the field's name
        """Since when (Unix seconds) it has had nothing but failures; None if that isn't known of it."""
        return self._known(id).failing if id in self._runtimes else None

    def note_failing(self, id: str, since: float) -> None:  # noqa: A002 - the field's name
        """It has had nothing but failures since then; the earliest note counts."""
        known = self._known(id)
        if id in self and (known.failing is None or since < known.failing):
            self._decide(id, known._replace(failing=since))

    def note_recovered(self, id: str) -> None:  # noqa: A002 - the field's name
        """Something was delivered to it."""
        known = self._known(id)
        if known.failing is not None:
            self._decide(id, known._replace(failing=None))

    def runtime(self, id: str) -> Runtime | None:  # noqa: A002 - the field's name
        """What has become of it; None if there is nothing to say of it as it is now."""
        known = self._known(id)
        return None if known.blank else known

    def set_runtime(self, id: str, runtime: Runtime | None) -> None:  # noqa: A002 - the field's name
        """What the topic says has become of it."""
        if runtime is None:
            self._runtimes.pop(id, None)
        else:
            self._runtimes[id] = runtime
        self._refresh(id)

    def _decide(self, id: str, runtime: Runtime) -> None:  # noqa: A002 - the field's name
        self.set_runtime(id, None if runtime.blank else runtime)
        if self.on_status is not None:
            self.on_status(id)

    def _known(self, id: str) -> Runtime:  # noqa: A002 - the field's name
        """What is known of it as it is now, if only its tag."""
        tag = self.tag(id) or ""
        known = self._runtimes.get(id)
        return known if known is not None and known.tag == tag else Runtime(tag)

    # What the API manages.

    def __contains__(self, subscription_id: object) -> bool:
        return subscription_id in self._entries or subscription_id in self._managed

    def in_file(self, id: str) -> bool:  # noqa: A002 - the field's name
        """Whether the file has it. Then that is what is in force."""
        return id in self._entries

    def file_ids(self) -> Sequence[str]:
        """The ids of the file's, sorted; not to be changed."""
        if self._file_ids is None or self._file_ids[0] is not self._entries:
            self._file_ids = (self._entries, sorted(self._entries))
        return self._file_ids[1]

    def tag(self, id: str) -> str | None:  # noqa: A002 - the field's name
        """What names the state of it that is in force (rule 5); None if there is no such subscription."""
        entry = self._entries.get(id)
        if entry is not None:
            return entry.tag
        managed = self._managed.get(id)
        return None if managed is None else managed.tag

    def put_managed(self, subscription: Subscription, tag: str = "") -> None:
        """Add or replace one of the API's; `tag` names what it was created as, through all of its changes."""
        id_ = subscription.id
        if id_ in self._entries and id_ not in self._managed:
            self._tell_of_clashes([id_])
        self._managed[id_] = Managed(subscription, tag)
        self._refresh(id_)

    def remove_managed(self, id: str) -> None:  # noqa: A002 - the field's name
        """Take one of the API's away; the file's, if it has one of this id, stays."""
        if self._managed.pop(id, None) is not None:
            self._refresh(id)

    async def load_managed(self, managed: Mapping[str, Managed], runtimes: Mapping[str, Runtime]) -> None:
        """Put these in the place of all that the API had, by id; built in a thread, swapped in at once."""
        async with self._lock:
            self._managed = dict(managed)
            self._runtimes = dict(runtimes)
            self._tell_of_clashes([id_ for id_ in self._managed if id_ in self._entries])
            # Nothing is delivered before all of it is there: no pauses for the loop's sake.
            breathe = self._breathing(_PAUSE if len(self.index) > len(self._entries) else 0.0)
            self._touched = set()
            try:
                built = await asyncio.to_thread(
                    _build, self._entries, self._managed.copy(), self._runtimes.copy(), breathe
                )
                old = self._swap_index(built)
            finally:
                self._touched = None
            await asyncio.to_thread(_release, old, breathe)

    def _tell_of_clashes(self, ids: Sequence[str]) -> None:
        if ids:
            log.warning(
                "subscriptions of the API's stand in the subscriptions file too: the file's are in force",
                subscriptions=ids[:_LOGGED],
                total=len(ids),
                hint="take them out of the file; what is to be deleted through the API can be when it isn't in the file",
            )

    # The snapshot.

    def _refresh(self, id: str) -> None:  # noqa: A002 - the field's name
        """Bring the snapshot to what the sources say of it (rule 4)."""
        if self._touched is not None:
            self._touched.add(id)
        wanted = _effective(id, self._entries, self._managed, self._runtimes)
        old = self.index.get(id)
        if wanted is old:
            return
        if old is not None:
            self._statuses[old.status] -= 1
        if wanted is None:
            self.index = self.index.without(id)
        else:
            self._statuses[wanted.status] += 1
            self.index = self.index.replaced(wanted)

    def _swap_index(self, built: _Built) -> list[object]:
        """Put a built snapshot in place. Returns the old one in pieces."""
        pieces = self.index.pieces()
        self.index, self._statuses = built
        touched, self._touched = self._touched, None
        for id_ in touched or ():
            self._refresh(id_)
        return pieces

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
            self._touched = set()
            try:
                loaded = await asyncio.to_thread(
                    self._prepare,
                    file,
                    content,
                    self._entries,
                    self._managed.copy(),
                    self._runtimes.copy(),
                    breathe,
                )
                old = self._swap(loaded)
            finally:
                self._touched = None
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
        known: _Entries,
        managed: Mapping[str, Managed],
        runtimes: Mapping[str, Runtime],
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
            stale = {*loaded.changed, *loaded.removed}
            still = {id_: runtime for id_, runtime in runtimes.items() if id_ not in stale}
            loaded.built = _build(entries, managed, still, breathe)
        return loaded

    def _swap(self, loaded: _Loaded) -> list[object]:
        """On the loop: put in place what was prepared. Returns what is left of the old, in pieces."""
        old, self._entries = self._entries, loaded.entries
        # Whatever became of the old entries is over, even should they come back as they were.
        over = [
            id_
            for id_ in (*loaded.changed, *loaded.removed)
            if id_ in self._runtimes and self._runtimes[id_].tag == old[id_].tag
        ]
        for id_ in over:
            del self._runtimes[id_]
        self._tell_of_clashes([id_ for id_ in loaded.added if id_ in self._managed])
        if loaded.built is None:
            pieces: list[object] = []
            for id_ in (*loaded.removed, *loaded.added, *loaded.changed):
                self._refresh(id_)
        else:
            pieces = [old, *self._swap_index(loaded.built)]
        if self.on_status is not None:
            for id_ in over:
                self.on_status(id_)
        return pieces


def _effective(
    id: str,  # noqa: A002 - the field's name
    entries: Mapping[str, _Entry],
    managed: Mapping[str, Managed],
    runtimes: Mapping[str, Runtime],
) -> Subscription | None:
    """What is in force of this id."""
    found = entries.get(id) or managed.get(id)
    if found is None:
        return None
    runtime = runtimes.get(id)
    return found.subscription if runtime is None else _as_become(found, runtime)


def _as_become(found: _Entry | Managed, runtime: Runtime) -> Subscription:
    subscription = found.subscription
    if runtime.tag != found.tag or runtime.status in {None, subscription.status}:
        return subscription
    if runtime.status is Status.DISABLED:
        return subscription.with_status(Status.DISABLED, runtime.reason)
    # Having passed the validation ends the waiting for it, and nothing else: not a pause.
    return subscription.with_status(Status.ACTIVE) if subscription.status is Status.PENDING else subscription


def _build(
    entries: Mapping[str, _Entry],
    managed: Mapping[str, Managed],
    runtimes: Mapping[str, Runtime],
    breathe: Callable[[], None],
) -> _Built:
    """The snapshot of all three sources, in whatever thread."""
    found: dict[str, Subscription] = {}
    for id_ in {**managed, **entries}:
        subscription = _effective(id_, entries, managed, runtimes)
        if subscription is not None:
            found[id_] = subscription
        breathe()
    index = Index(found.values())
    breathe()
    return _Built(index, Counter(subscription.status for subscription in found.values()))
