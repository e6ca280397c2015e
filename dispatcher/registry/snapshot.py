"""The subscriptions in force, as they follow from their sources: the file, the API, and what has become of either at run time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from dispatcher.core.subscription.index import Index
from dispatcher.core.subscription.model import Status, Subscription
from dispatcher.registry.file import FileEntry

BY_OPERATOR: Final = "operator"
"""The reason of a subscription that an operator has disabled."""


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
    text: str | None = None
    """What the operator wrote who disabled it."""

    @property
    def blank(self) -> bool:
        """Whether it says nothing."""
        return self.status is None and self.failing is None


class Managed(NamedTuple):
    """A subscription of the API's, and the tag of what it was created as."""

    subscription: Subscription
    tag: str


class Snapshot(NamedTuple):
    snapshot: Index
    statuses: Counter[Status]


def effective(
    id: str,  # noqa: A002 - the field's name
    entries: Mapping[str, FileEntry],
    managed: Mapping[str, Managed],
    runtimes: Mapping[str, Runtime],
) -> Subscription | None:
    """What is in force of this id."""
    found = entries.get(id) or managed.get(id)
    if found is None:
        return None
    runtime = runtimes.get(id)
    return found.subscription if runtime is None else _as_become(found, runtime)


def _as_become(found: FileEntry | Managed, runtime: Runtime) -> Subscription:
    subscription = found.subscription
    if runtime.tag != found.tag or runtime.status in {None, subscription.status}:
        return subscription
    if runtime.status is Status.DISABLED:
        return subscription.with_status(Status.DISABLED, runtime.reason)
    # Having passed the validation ends the waiting for it, and nothing else: not a pause.
    return subscription.with_status(Status.ACTIVE) if subscription.status is Status.PENDING else subscription


def build(
    entries: Mapping[str, FileEntry],
    managed: Mapping[str, Managed],
    runtimes: Mapping[str, Runtime],
    breathe: Callable[[], None],
) -> Snapshot:
    """The snapshot of all three sources, in whatever thread."""
    found: dict[str, Subscription] = {}
    for id_ in {**managed, **entries}:
        subscription = effective(id_, entries, managed, runtimes)
        if subscription is not None:
            found[id_] = subscription
        breathe()
    index = Index(found.values())
    breathe()
    return Snapshot(index, Counter(subscription.status for subscription in found.values()))


def release(pieces: list[object], breathe: Callable[[], None]) -> None:
    """Free an old snapshot piece by piece: at once, 100,000 subscriptions hold the loop up for 100 ms."""
    entries = pieces[0]
    if isinstance(entries, dict):
        while entries:
            entries.popitem()
            breathe()
    while pieces:
        pieces.pop()
        breathe()
