"""What was read out of turn: offsets that were skipped or begun anew, counted and kept for `/readyz`.

Whatever the reason, events may have been lost, or come again; nobody looks at a log line of last night. So each
(topic, reason) stays a warning until the process ends, with how often and how much.
"""

from __future__ import annotations

from dispatcher.broker.base import Jump, Why
from dispatcher.telemetry.metrics import Metrics

_SENTENCES = {
    Why.RETENTION: "{skipped} offsets of topic {topic} were deleted by retention before group {group} read them: they are lost;"
    " raise the topic's retention.ms or retention.bytes, or have the group keep up (`dispatcher topics` shows its lag)",
    Why.EXPIRED: "the offsets of group {group} on topic {topic} were gone ({partitions} partitions): reading began at the earliest"
    " records that are kept, and some may be delivered again; look at the broker's offsets.retention.minutes, and whether"
    " somebody deletes offsets",
    Why.MADE_ANEW: "topic {topic} was deleted and made anew: group {group} reads it from its beginning ({partitions} partitions);"
    " what was not read of the old one is lost",
    Why.CUT: "partitions of topic {topic} ended before the offsets of group {group} ({partitions} partitions): the topic was"
    " made anew, or cut off by a leader that lacked records; they are read from their beginning",
}


class Jumps:
    """Those of one group. Written by its membership alone."""

    def __init__(self, group: str, metrics: Metrics) -> None:
        self._group = group
        self._metrics = metrics
        self._skipped: dict[tuple[str, Why], int] = {}
        self._partitions: dict[tuple[str, Why], set[int]] = {}

    def note(self, jump: Jump, skipped: int = 0) -> None:
        """One more. `skipped`: the offsets that retention deleted, and that were neither read nor done before."""
        (topic, partition), why, *_ = jump
        if why is Why.RETENTION:
            self._metrics.offsets_skipped[topic] += skipped
        self._metrics.jumps[str(why)] += 1
        key = (topic, why)
        self._skipped[key] = self._skipped.get(key, 0) + skipped
        self._partitions.setdefault(key, set()).add(partition)

    def warnings(self) -> list[str]:
        """A sentence for each topic and reason."""
        return [
            _SENTENCES[why].format(
                topic=topic, group=self._group, skipped=skipped, partitions=len(self._partitions[topic, why])
            )
            for (topic, why), skipped in self._skipped.items()
            # What had been delivered before it was deleted is no loss.
            if skipped or why is not Why.RETENTION
        ]
