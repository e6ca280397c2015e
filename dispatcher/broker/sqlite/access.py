"""Who gets at the embedded broker's file: its owner alone, and one process at a time.

The file holds signing secrets and events. Its rights are 0600, as are those of the files that SQLite makes beside it
(`-wal`, `-shm`: SQLite gives them the rights of the file itself) and of the lock; a folder that is made for it has 0700.

The lock lies beside the real file. Two names for one file, one of them a symbolic link, lead to the same lock. The kernel
releases it when the process dies, however it dies.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from pathlib import Path
from typing import Final

from dispatcher.broker.base import BrokerRefused

_FILE_MODE: Final = 0o600
_FOLDER_MODE: Final = 0o700
_BESIDE: Final = ("", "-wal", "-shm", "-journal")


def real_file(path: Path) -> Path:
    """The file that `path` leads to, whether it exists or not."""
    return Path(os.path.realpath(path))


def claim(path: Path) -> int:
    """Make the folder and the real file `path` for its owner alone; return the lock's descriptor.

    Raises BrokerRefused while another process holds the lock, and OSError.
    """
    _make_folder(path.parent)
    lock = _take_lock(path)
    try:
        # SQLite would make it for everybody.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _FILE_MODE))
        for name in _BESIDE:
            _restrict(path.with_name(path.name + name))
    except BaseException:
        os.close(lock)
        raise
    return lock


def _make_folder(folder: Path) -> None:
    if folder.is_dir():
        return  # somebody else's, or shared: its rights are not ours to change
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=_FOLDER_MODE, exist_ok=True)


def _restrict(path: Path) -> None:
    # Of a file that belongs to another user, that user decides.
    with contextlib.suppress(FileNotFoundError, PermissionError):
        if path.stat().st_mode & 0o777 & ~_FILE_MODE:
            path.chmod(_FILE_MODE)


def _take_lock(path: Path) -> int:
    lock = path.with_name(path.name + ".lock")
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _FILE_MODE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.read(descriptor, 32).decode(errors="replace").strip()
        os.close(descriptor)
        if error.errno not in {errno.EWOULDBLOCK, errno.EACCES}:
            raise
        raise BrokerRefused(
            f"{path} is in use by process {holder or 'unknown'}: the embedded broker serves one process at a time;"
            " stop that one, go through its API (POST /v1/events publishes), or use Kafka"
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
    _restrict(lock)
    return descriptor
