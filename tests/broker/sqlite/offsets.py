from __future__ import annotations

from dispatcher.broker.sqlite.broker import SqliteBroker


async def earliest_and_latest(broker: SqliteBroker, topic: str, partition: int = 0) -> tuple[int, int]:
    (info,) = [info for info in await broker.topics() if info.name == topic]
    return info.partitions[partition].earliest, info.partitions[partition].latest
