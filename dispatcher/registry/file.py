"""The subscriptions file: its entries, read and checked one by one.

Reading is Python code and takes as long as the file is large, so a thread does it (`registry.py`). It changes nothing here or there.
"""

from __future__ import annotations

import os
import ssl
import stat
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, NamedTuple

import orjson

from dispatcher.core.flaws import Flaw, FlawedError
from dispatcher.core.request.netguard import Guard
from dispatcher.core.retry.policy import RetryPolicy
from dispatcher.core.subscription.model import ClientCertificate, Subscription
from dispatcher.core.subscription.spec import SpecReader
from dispatcher.core.text.plain_json import NotPlain, plain_json
from dispatcher.core.text.yaml_document import DocumentError, Lines, Part, did_you_mean, stream
from dispatcher.settings.groups import Settings

MAX_FILE: Final = 512 << 20
"""Bytes of the subscriptions file: some two million subscriptions."""

_LISTED: Final = 100  # mistakes that are listed; whoever made more has made the same one again
_KEY: Final = "subscriptions"
_PLAIN: Final = 64 << 20  # bytes of a file whose data may be in memory as a whole
_NOWHERE: Final = Lines(0)


class SubscriptionsError(Exception):
    """The subscriptions file can't be used; `mistakes` are all that is wrong, each with its place."""

    def __init__(self, mistakes: Sequence[str]) -> None:
        listed = list(mistakes[:_LISTED])
        if len(mistakes) > _LISTED:
            listed.append(f"... and {len(mistakes) - _LISTED} more")
        super().__init__("\n".join(listed))
        self.mistakes = tuple(mistakes)


class FileEntry(NamedTuple):
    """A subscription as the file has it, and what it was read from."""

    digest: bytes | None
    subscription: Subscription

    @property
    def tag(self) -> str:
        """What names this state of it; one that has no digest has the same name always."""
        return "" if self.digest is None else self.digest.hex()


Entries = dict[str, FileEntry]

# Device, inode, size and time of the last change; None for a file that isn't there.
Mark = tuple[int, int, int, int] | None


def _mark(status: os.stat_result) -> Mark:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def mark_of(file: Path) -> Mark:
    try:
        return _mark(file.stat())
    except OSError:
        return None


def contents_of(file: Path) -> tuple[Mark, bytes]:
    """The file, and its mark from before it was read: a change during the reading shows at the next look."""
    try:
        # Without O_NONBLOCK opening a FIFO waits for a writer, perhaps for ever, and no file is read again.
        with open(file, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as opened:
            status = os.fstat(opened.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise SubscriptionsError([f"{file}: must be a regular file, and is {_kind(status.st_mode)}"])
            # What says to be larger isn't read at all; what grows meanwhile is read no further.
            content = b"" if status.st_size > MAX_FILE else opened.read(MAX_FILE + 1)
    except OSError as error:
        raise SubscriptionsError([f"{file}: can't be read: {error.strerror or error}"]) from error
    if max(status.st_size, len(content)) > MAX_FILE:
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


def read_entries(
    file: Path,
    content: bytes,
    reader: SpecReader,
    known: Entries,
    breathe: Callable[[], None] | None = None,
    *,
    at_once: bool = False,
) -> Entries:
    """Every entry of the file; of those that are as `known` has them, the known ones. Raises SubscriptionsError.

    `at_once`: no deliveries wait meanwhile, so the interpreter may be busy with the whole file at a stretch.
    """
    if at_once and (plain := _plain_entries(content, reader, known, breathe)) is not None:
        return plain
    entries: Entries = {}
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


def _plain_entries(
    content: bytes, reader: SpecReader, known: Entries, breathe: Callable[[], None] | None
) -> Entries | None:
    """The same of a file that is plain JSON and has no mistake; None for any other."""
    if len(content) > _PLAIN:
        return None
    try:
        document = plain_json(content)
    except NotPlain:
        return None
    listed = document.pop(_KEY, None)
    if not isinstance(listed, list) or any(not name.startswith("x-") for name in document):
        return None
    entries: Entries = {}
    lines: dict[str, int] = {}
    for number, raw in enumerate(listed):
        if breathe is not None:
            breathe()
        if _entry(Part((_KEY, number), raw, _NOWHERE), reader, known, entries, lines):
            return None
    return entries


def _entry(
    part: Any, reader: SpecReader, known: Entries, entries: Entries, lines: dict[str, int]
) -> list[str]:
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
        entries[subscription.id] = FileEntry(digest, subscription)
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


def subscription_reader(settings: Settings, guard: Guard, environ: Mapping[str, str]) -> SpecReader:
    retry = RetryPolicy(settings.retry.schedule, settings.retry.jitter)
    return SpecReader(guard, timeout=settings.delivery.timeout, retry=retry, environ=environ)


def load_file(file: Path, settings: Settings, guard: Guard, environ: Mapping[str, str]) -> list[Subscription]:
    """Every subscription of the file, in its order. Raises SubscriptionsError."""
    _, content = contents_of(file)
    entries = read_entries(file, content, subscription_reader(settings, guard, environ), {}, at_once=True)
    return [entry.subscription for entry in entries.values()]
