"""Fencing an idempotent producer on a real broker.

A broker fences by producer id and epoch, partition by partition, and takes both from the batch itself. Without
transactions nobody ever bumps the epoch of an id on purpose: here an impostor does, who writes a record
with the id of whoever wrote last and the epoch after theirs.
"""

from __future__ import annotations

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.producer.transaction_manager import PidAndEpoch
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.record.memory_records import MemoryRecords


async def fence(servers: str, topic: str, partition: int) -> None:
    """Fence the producer of the partition's last batch. Leaves a record without value there."""
    producer_id, epoch = await _last_producer(servers, topic, partition)
    impostor = AIOKafkaProducer(bootstrap_servers=servers, enable_idempotence=True)
    await impostor.start()
    try:
        identity = impostor._txn_manager
        await identity.wait_for_pid()
        identity._pid_and_epoch = PidAndEpoch(producer_id, epoch + 1)
        await impostor.send_and_wait(topic, key=b"impostor", partition=partition)
    finally:
        await impostor.stop()


async def _last_producer(servers: str, topic: str, partition: int) -> tuple[int, int]:
    """Id and epoch, from the header of the last batch. The partition must be a short one."""
    client = AIOKafkaClient(bootstrap_servers=servers)
    await client.bootstrap()
    try:
        await client.set_topics([topic])
        node = client.cluster.leader_for_partition(TopicPartition(topic, partition))
        wanted = [(topic, [(partition, 0, 1 << 20)])]
        response = await client.send(node, FetchRequest(100, 1, 1 << 20, 0, wanted))
    finally:
        await client.close()
    records = MemoryRecords(response.topics[0][1][0][-1])
    found: tuple[int, int] | None = None
    while records.has_next():
        batch = records.next_batch()
        found = batch.producer_id, batch.producer_epoch
    assert found is not None, f"{topic}-{partition} is empty"
    return found
