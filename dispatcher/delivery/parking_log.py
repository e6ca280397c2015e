"""Says in the log which subscriptions have begun to be parked, and for which that is over.

In come the subscriptions that have a backlog, by partition, as often as anybody likes. Every `_INTERVAL` they are compared with those of the last
time: an endpoint that is turned away and taken up again in between is no news. State that this module alone writes: what was told.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

import structlog

from dispatcher.broker.base import TopicPartition

log = structlog.get_logger(__name__)

_INTERVAL: Final = 10.0  # seconds
_LINES: Final = 20  # of a kind at a time; thousands may begin at once


class ParkingLog:
    """One process's."""

    def __init__(self) -> None:
        self._told: dict[TopicPartition, frozenset[str]] = {}
        self._next = 0.0

    def look(self, now: float, parked: Mapping[TopicPartition, Collection[str]]) -> None:
        """`parked`: the ids of the subscriptions that have something parked, of each partition that is this process's.

        `now` in seconds of a clock that only goes forward. Nothing is done until it is time to look again.
        """
        if now < self._next:
            return
        self._next = now + _INTERVAL
        began: set[str] = set()
        ended: set[str] = set()
        told = {partition: frozenset(ids) for partition, ids in parked.items()}
        for partition, ids in told.items():
            before = self._told.get(partition)
            if before is not None:
                began |= ids - before
                ended |= before - ids
            elif ids:
                # They were parked by whoever had the partition, or by this process before it was started.
                log.info(
                    "deliveries are parked",
                    partition=f"{partition.topic}-{partition.partition}",
                    subscriptions=len(ids),
                )
        self._told = told  # of a partition that is somebody else's by now nothing is said
        _say("parking began", began)
        _say("parking ended", ended)


def _say(message: str, ids: Collection[str]) -> None:
    for each in sorted(ids)[:_LINES]:
        log.info(message, subscription_id=each)
    if len(ids) > _LINES:
        log.info(message, more_subscriptions=len(ids) - _LINES)
