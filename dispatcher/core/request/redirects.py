"""Redirects: the one rule by which deliveries and probes follow them.

A subscription with `redirects: same-origin` has 307 and 308 followed, which keep method and body (RFC 9110 15.4), at most `MAX_HOPS` times
in an attempt and within its deadline. Another origin was never agreed on with the subscriber, so the attempt fails there.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from dispatcher.core.request.build import retarget
from dispatcher.core.request.netguard import Guard
from dispatcher.core.request.results import Failure, Reason, Response, Result
from dispatcher.core.request.urls import Blocked, Target

FOLLOWED: Final = frozenset({307, 308})
"""The statuses that are followed."""
MAX_HOPS: Final = 3
"""Redirects of one attempt."""


class Hop(NamedTuple):
    """Where the attempt goes on: the target, and the whole request for it."""

    target: Target
    request: bytes


def follow(guard: Guard, base: Target, request: bytes, response: Response, hops: int) -> Hop | Result:
    """Where a response with one of the statuses `FOLLOWED` leads, or the result that the attempt ends with.

    `base` is the target that sent it, `request` what was sent there, `hops` the number of redirects followed before.
    """
    if hops >= MAX_HOPS or not response.location:
        return response
    try:
        target = guard.check_redirect(base, response.location)
    except Blocked as error:
        return Failure(Reason.BLOCKED, f"status {response.status}, not followed: {error}")
    return Hop(target, retarget(request, target.target))
