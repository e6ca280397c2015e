"""The subscriptions in force: from the YAML file and from the API, swapped in as one snapshot.

Three sources make the snapshot: the entries of the file (`file.py`), the subscriptions that the API manages
(`control/managed.py` reads them from the topic), and what has become of either at run time: disabled and why, failing
since when. Where the file and the API have the same id, the file's subscription is in force: whoever can write the
file runs the installation. With last-writer-wins, chance would decide.

A thread reads the file and builds the snapshot (`loading.py`). The loop sees only the result: an `Index` that takes
the old one's place between two callbacks.

The registry notices a changed file by polling: once a second it asks `stat` about the path and follows links. inotify
was rejected: a ConfigMap is replaced by swapping a link two directories up, and network file systems don't report
writes of other hosts.

A file that is being written looks like a complete one, and its first half may be valid YAML without the other half's
subscriptions. So the registry reads a changed file once it has stayed the same for one poll. An empty file is an
error: `subscriptions: []` says that there are none. A new inode is no sign of completeness: editors make one and then write.

Rules:

1. `index` is a complete, valid snapshot at any time. A file with a mistake changes nothing.
2. Only the loop's thread replaces `index`. A thread reads files and builds; it changes nothing here.
3. An entry that didn't change keeps its `Subscription`, with whatever is cached in it.
4. What `index` says of an id follows from the three sources alone (`effective`). Whoever changes one of them
   refreshes the id; one that is changed while a thread builds is refreshed when its work has been swapped in.
5. A `Runtime` is about one state of a subscription, named by its tag: the digest of the file's entry, or what the
   API's was created as. With another tag it says nothing, so that a changed entry starts over.
6. `on_status` is told of what is decided here (`disable`, `note_failing`...), never of what `set_runtime` brings.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Final

import structlog

from dispatcher.core.request.netguard import Guard
from dispatcher.core.subscription.index import Index
from dispatcher.core.subscription.model import Status, Subscription
from dispatcher.registry.file import (
    Entries,
    Mark,
    SubscriptionsError,
    contents_of,
    mark_of,
    subscription_reader,
)
from dispatcher.registry.loading import Loaded, LoadingStopped, breathing, prepare
from dispatcher.registry.snapshot import BY_OPERATOR, Managed, Runtime, Snapshot, build, effective, release
from dispatcher.runtime.tasks import Tasks
from dispatcher.settings.groups import Settings

log = structlog.get_logger(__name__)

_POLL: Final = 1.0  # seconds between two looks at the file
_PAUSE: Final = 0.004  # seconds that the reading thread leaves to the loop after each slice
_LOGGED: Final = 20


Watcher = Callable[[Subscription | None, Subscription | None], None]


# Long: the one owner of the snapshot; each of its three sources changes it by a few methods.
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
        """Called with the id of each subscription about which the registry has decided something; `runtime` says what."""
        self.on_disabled: Callable[[Subscription, str, str | None], None] | None = None
        """Called with each subscription that `disable` has disabled, and the reason."""
        self.watchers: list[Watcher] = []
        """Each is called with what a subscription was before a change, and what it is; with None for both where all may be others."""
        self._settings = settings
        self._guard = guard
        self._environ = environ
        self._poll = poll
        self._wall = wall
        self._file = settings.subscriptions_file
        self._entries: Entries = {}
        self._file_ids: tuple[Entries, list[str]] | None = None  # sorted, and what they were sorted of
        self._managed: dict[str, Managed] = {}
        self._runtimes: dict[str, Runtime] = {}
        self._touched: set[str] | None = None  # ids changed while a thread builds
        self._statuses: Counter[Status] = Counter()
        self._mark: Mark = None  # of the file as it was last read, whatever came of it
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
            log.info("no subscriptions file", hint="make them by the API, or set subscriptions_file")
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

    def disable(self, id: str, reason: str, text: str | None = None) -> None:  # noqa: A002 - the field's name
        """Deliver nothing more to it, until its entry in the file changes or somebody enables it.

        An operator (`BY_OPERATOR`) says why in `text`, also of one that is disabled for another reason.
        """
        subscription = self.index.get(id)
        if subscription is None or (subscription.status is Status.DISABLED and reason != BY_OPERATOR):
            return
        known = self._known(id)
        self._decide(id, known._replace(status=Status.DISABLED, reason=reason, since=self._wall(), text=text))
        if self.on_disabled is not None:
            self.on_disabled(subscription, reason, text)
        _tell_of_disabled(subscription, reason)

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

    @property
    def file_count(self) -> int:
        """How many the file has."""
        return len(self._entries)

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
            _tell_of_clashes([id_])
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
            _tell_of_clashes([id_ for id_ in self._managed if id_ in self._entries])
            # Nothing is delivered before all of it is there: no pauses for the loop's sake.
            breathe = breathing(
                lambda: self._stopping, _PAUSE if len(self.index) > len(self._entries) else 0.0
            )
            self._touched = set()
            try:
                built = await asyncio.to_thread(
                    build, self._entries, self._managed.copy(), self._runtimes.copy(), breathe
                )
                old = self._swap_index(built)
            finally:
                self._touched = None
            await asyncio.to_thread(release, old, breathe)

    # The snapshot.

    def _refresh(self, id: str) -> None:  # noqa: A002 - the field's name
        """Bring the snapshot to what the sources say of it (rule 4)."""
        if self._touched is not None:
            self._touched.add(id)
        wanted = effective(id, self._entries, self._managed, self._runtimes)
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
        for watcher in self.watchers:
            watcher(old, wanted)

    def _swap_index(self, built: Snapshot) -> list[object]:
        """Put a built snapshot in place. Returns the old one in pieces."""
        pieces = self.index.pieces()
        self.index, self._statuses = built
        for watcher in self.watchers:
            watcher(None, None)
        touched, self._touched = self._touched, None
        for id_ in touched or ():
            self._refresh(id_)
        return pieces

    async def _watch(self, file: Path) -> None:
        before = self._mark
        while True:
            await asyncio.sleep(self._poll)
            mark = await asyncio.to_thread(mark_of, file)
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
        except LoadingStopped:
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
                self._mark, content = await asyncio.to_thread(contents_of, file)
            except SubscriptionsError:
                self._mark = None
                raise
            breathe = breathing(lambda: self._stopping, _PAUSE if beside_loop else 0.0)
            self._touched = set()
            try:
                loaded = await asyncio.to_thread(
                    prepare,
                    file,
                    content,
                    subscription_reader(self._settings, self._guard, self._environ),
                    self._entries,
                    self._managed.copy(),
                    self._runtimes.copy(),
                    breathe,
                    at_once=not beside_loop,
                )
                old = self._swap(loaded)
            finally:
                self._touched = None
            if old:
                await asyncio.to_thread(release, old, breathe)
        self.reloads_ok += 1
        self._complaint = None
        _tell_of_loaded(file, loaded, len(self.index))

    def _swap(self, loaded: Loaded) -> list[object]:
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
        _tell_of_clashes([id_ for id_ in loaded.added if id_ in self._managed])
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


def _tell_of_clashes(ids: Sequence[str]) -> None:
    if ids:
        log.warning(
            "subscriptions of the API are in the subscriptions file too: the file's are in force",
            subscriptions=ids[:_LOGGED],
            total=len(ids),
            hint="remove them from the file to use the API's; to delete one through the API, remove it from the file first",
        )


def _tell_of_disabled(subscription: Subscription, reason: str) -> None:
    log.warning(
        "subscription disabled",
        subscription=subscription.id,
        tenant=subscription.tenant,
        reason=reason,
        hint="enable it through the API (`dispatcher subscriptions enable`), or change its entry in the subscriptions file",
    )


def _tell_of_loaded(file: Path, loaded: Loaded, total: int) -> None:
    log.info(
        "subscriptions loaded",
        file=str(file),
        total=total,
        added=len(loaded.added),
        changed=len(loaded.changed),
        removed=len(loaded.removed),
    )
