"""What can be wrong with an operation of the control plane.

The HTTP side maps each to one status; nothing else leaves `dispatcher.control`::

    ControlError
    ├── NotFound           404  there is none of that name, or none that the caller may see
    ├── Gone               410  it was there, and is known to be there no more
    ├── AlreadyExists      409  the id is taken
    ├── FileManaged        409  it stands in the subscriptions file: only the file changes it
    ├── WrongState         409  its status doesn't allow this just now
    ├── VersionMismatch    412  somebody else has changed it meanwhile
    ├── TooLarge           413  beyond a limit of size
    ├── Invalid            422  `flaws` says which fields, and why
    ├── QuotaExceeded      429  a tenant has or takes as much as it may; after `retry_after` seconds it may go on, where it says so
    ├── Overloaded         429  come again after `retry_after` seconds
    └── Unavailable        503  the broker is away, or what it holds isn't read yet; likewise
"""

from __future__ import annotations

from collections.abc import Sequence

from dispatcher.core.flaws import Flaw


class ControlError(Exception):
    """An operation that did not happen. The message is for the caller: what is wrong, and what to do."""


class NotFound(ControlError):
    """There is none of that name, or none that the caller may see."""


class Gone(ControlError):
    """It was there, and is known to be there no more."""


class AlreadyExists(ControlError):
    """The id is taken."""


class FileManaged(ControlError):
    """It stands in the subscriptions file: only the file changes it."""

    def __init__(self, id: str) -> None:  # noqa: A002 - the field's name
        super().__init__(
            f"{id} is managed by the subscriptions file: change it there, it is read again within seconds"
        )


class WrongState(ControlError):
    """Its status doesn't allow this just now."""


class VersionMismatch(ControlError):
    """Somebody else has changed it meanwhile; `current` is the version in force, None if it is gone."""

    def __init__(self, current: int | None) -> None:
        now = "it is gone" if current is None else f"its version is {current} now"
        super().__init__(f"changed by somebody else meanwhile: {now}. Read it again and repeat the change")
        self.current = current


class TooLarge(ControlError):
    """Beyond a limit of size; `flaws` say which part of it, where that is known."""

    def __init__(self, message: str, flaws: Sequence[Flaw] = ()) -> None:
        super().__init__(message)
        self.flaws = tuple(flaws)


class Invalid(ControlError):
    """The request can't be taken; `flaws` are all mistakes in it, each with its field."""

    def __init__(self, flaws: Sequence[Flaw]) -> None:
        super().__init__("; ".join(map(str, flaws)))
        self.flaws = tuple(flaws)


class QuotaExceeded(ControlError):
    """A tenant has, or takes, as much as it may; `retry_after` in seconds, None where waiting alone doesn't help."""

    def __init__(self, quota: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.quota = quota
        self.retry_after = retry_after


class Overloaded(ControlError):
    """Too much at once; `retry_after` in seconds."""

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Unavailable(ControlError):
    """The broker is away, or what it holds isn't read yet; `retry_after` in seconds."""

    def __init__(self, message: str, retry_after: float = 2.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after
