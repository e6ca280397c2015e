"""Pages of subscriptions, in the order of their ids.

The ids of the API's subscriptions and of the file's stand sorted. A page begins by bisection at its cursor, the last
id of the page before. So a page stays right whatever is made or deleted between two pages.

Filters look at the snapshot that deliveries use. Only subscriptions that are shown are parsed and unsealed. A filter
that few subscriptions pass could look at a hundred thousand in one go, while deliveries wait. So a page ends after
`_LOOKED_AT` subscriptions, perhaps empty, with a cursor to go on from. The index has the ids of one tenant together.
"""

from __future__ import annotations

import contextlib
import heapq
from base64 import urlsafe_b64decode, urlsafe_b64encode
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Final

from dispatcher.control.errors import (
    Invalid,
)
from dispatcher.control.store import ControlStore
from dispatcher.control.views import View, Views, sees
from dispatcher.core.flaws import Flaw
from dispatcher.core.subscription.model import Status
from dispatcher.core.subscription.patterns import matches
from dispatcher.registry.registry import Registry

MAX_PAGE: Final = 200
PAGE: Final = 50

_LOOKED_AT: Final = 10_000  # subscriptions that one page looks at, and where it shows some...
_SHOWN: Final = 25  # ...fewer by so many for each: parsing, unsealing and checking one takes that much longer


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a listing; `next_cursor` is None on the last one."""

    items: list[View]
    next_cursor: str | None


class Listing:
    """Makes pages of subscriptions. `tenant` None is an operator, who sees all; a tenant sees its own."""

    def __init__(self, store: ControlStore, registry: Registry, views: Views) -> None:
        self._store = store
        self._registry = registry
        self._views = views

    def page(
        self,
        *,
        tenant: str | None,
        of_tenant: str | None = None,
        status: str | None = None,
        event_type: str | None = None,
        host: str | None = None,
        cursor: str | None = None,
        limit: int = PAGE,
    ) -> Page:
        """A page in the order of the ids. `of_tenant` is an operator's filter.

        A page may hold fewer than `limit`, even none: only `next_cursor` None says that it was the last.
        """
        self._views.ready()
        if not 1 <= limit <= MAX_PAGE:
            raise Invalid([Flaw(("limit",), f"must be 1 to {MAX_PAGE}")])
        if status is not None and status not in set(Status):
            raise Invalid([Flaw(("status",), f"must be one of {', '.join(Status)}")])
        after = "" if cursor is None else _after(cursor)
        whose = of_tenant if tenant is None else tenant
        if host is not None:
            host = host.lower().rstrip(".")
        if tenant is not None and of_tenant not in (None, tenant):
            return Page([], None)
        index = self._registry.index

        # The same few lists of patterns stand in most subscriptions.
        @cache
        def wants(patterns: tuple[str, ...]) -> bool:
            return any(matches(pattern, event_type or "") for pattern in patterns)

        items: list[View] = []
        left = _LOOKED_AT
        for id_ in self._ids(whose, after):
            if len(items) == limit or left <= 0:
                return Page(items, _cursor(after))
            left -= 1
            after = id_
            subscription = index.get(id_)
            if subscription is None:
                # The topic has it, but it is no subscription (`Stored.unusable`).
                view = self._views.find(id_)
                if view is None or not _passes(view, whose, status, event_type, host):
                    continue
            else:
                if (
                    (whose is not None and subscription.tenant != whose)
                    or (status is not None and subscription.status != status)
                    or (host is not None and subscription.origin.host != host)
                    or (event_type is not None and not wants(subscription.event_types))
                ):
                    continue
                view = self._views.find(id_)
                if view is None:
                    continue
            items.append(view)
            left -= _SHOWN
        return Page(items, None)

    def _ids(self, tenant: str | None, after: str) -> Iterable[str]:
        """Ids beyond `after`, in order; of a tenant's only its own where the index has them at hand."""
        if tenant is not None:
            own = self._registry.index.ids_of(tenant)
            if own is not None:
                return sorted(id_ for id_ in own if id_ > after)
        ids, file_ids = (
            map(known.__getitem__, range(bisect_right(known, after), len(known)))
            for known in (self._store.ids(), self._registry.file_ids())
        )
        # One of the two is nearly always empty, and merging costs more than all else that is done for an id.
        if not self._registry.file_ids():
            return ids
        return file_ids if not len(self._store) else _merged(ids, file_ids)


def _cursor(after: str) -> str:
    return urlsafe_b64encode(after.encode()).decode().rstrip("=")


def _after(cursor: str) -> str:
    text = ""
    with contextlib.suppress(ValueError):
        text = urlsafe_b64decode(cursor[:128] + "=" * (-len(cursor) % 4)).decode("ascii")
    if not text or _cursor(text) != cursor:
        raise Invalid([Flaw(("cursor",), "is not one that a page of this list ended with")])
    return text


def _merged(ones: Iterable[str], others: Iterable[str]) -> Iterator[str]:
    """Both in order, what stands in both once."""
    last = ""
    for id_ in heapq.merge(ones, others):
        if id_ != last:
            last = id_
            yield id_


def _passes(
    view: View, tenant: str | None, status: str | None, event_type: str | None, host: str | None
) -> bool:
    """Whether one that is in no index passes the filters."""
    return (
        sees(tenant, view.document.get("tenant"))
        and status in (None, view.status)
        and event_type is None
        and host is None
    )
