"""The words for what ended: what happens to a delivery after an attempt, and why it ends.

One spelling each, for records of the attempts topic, metrics, logs and the API. The words for why an attempt had no answer are
`core/request/results.py`'s.
"""

from __future__ import annotations

from typing import Final

DELIVERED: Final = "delivered"
"""The endpoint acknowledged it. An end."""

RETRY: Final = "retry"
"""It is attempted again at a known time."""

PARKED: Final = "parked"
"""It waits for its endpoint, for no particular time."""

DEAD: Final = "dead"
"""It is given up and written to the dead-letter topic. An end."""

DROPPED: Final = "dropped"
"""It is owed to nobody any more. An end, without a dead letter."""

LEFT_TO_ANOTHER: Final = "left_to_another"
"""Its partition went to another replica, or is about to go to the next process, which delivers it."""

DECISIONS: Final = (DELIVERED, RETRY, PARKED, DEAD, DROPPED, LEFT_TO_ANOTHER)

ENDS: Final = frozenset({DELIVERED, DEAD, DROPPED})
"""The decisions after which nothing more happens to a delivery of that generation."""

STRENGTH: Final = {DELIVERED: 3, DEAD: 2, DROPPED: 1}
"""Which end holds where one generation has several (a crash between an end and its commit): the stronger one."""
