"""A line in which tenants take turns, and of each tenant its endpoints.

Whoever comes with a thousand waits for all of them; whoever comes with one waits for one of each of the others.

Rules:

1. What one endpoint of a tenant has in here comes out in the order in which it came in.
2. A tenant stands in `_order` exactly while something of it is in here, and likewise an endpoint in the `_order` of its tenant's line.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Rounds(Generic[T]):
    """Items by tenant and endpoint, which may be any objects that can be told apart by their identity."""

    __slots__ = ("_count", "_lines", "_order")

    def __init__(self) -> None:
        self._count = 0
        self._lines: dict[object, _Line[T]] = {}
        self._order: deque[object] = deque()

    def __len__(self) -> int:
        return self._count

    def put(self, item: T, tenant: object, endpoint: object) -> None:
        """At the end of the line of the endpoint."""
        line = self._lines.get(tenant)
        if line is None:
            line = self._lines[tenant] = _Line()
            self._order.append(tenant)
        line.put(item, endpoint)
        self._count += 1

    def pop(self) -> T:
        """The next one. Raises IndexError where there is none."""
        tenant = self._order.popleft()
        line = self._lines[tenant]
        item = line.pop()
        if line.queues:
            self._order.append(tenant)
        else:
            del self._lines[tenant]
        self._count -= 1
        return item


class _Line(Generic[T]):
    """What one tenant has in a `Rounds`."""

    __slots__ = ("_order", "queues")

    def __init__(self) -> None:
        self.queues: dict[object, deque[T]] = {}
        self._order: deque[object] = deque()

    def put(self, item: T, endpoint: object) -> None:
        queue = self.queues.get(endpoint)
        if queue is None:
            queue = self.queues[endpoint] = deque()
            self._order.append(endpoint)
        queue.append(item)

    def pop(self) -> T:
        endpoint = self._order.popleft()
        queue = self.queues[endpoint]
        item = queue.popleft()
        if queue:
            self._order.append(endpoint)
        else:
            del self.queues[endpoint]
        return item
