"""Members of a group that have a name: a process that was killed and is started again takes its old place at once.

A killed member stays in its group until its session ends (`kafka.session_timeout`, 30 s), and until then nobody gets its
partitions. Here the new process finds the old member by its name, and makes it leave the group.

Kafka's own way is static membership (KIP-345). It was rejected: aiokafka implements half of it (its heartbeats and commits
carry no instance id, so a fenced twin is not told), and a static member that stops doesn't leave the group.

- The name is part of the client id of the group's consumers (`<kafka.client_id>.<name>`), which the coordinator tells of
  each member in every state of the group, and in the member ids that it makes.
- The new process joins first, and makes the old member leave while the group waits for that member. An empty group would
  wait for more members first (`group.initial.rebalance.delay.ms`, 3 s).
- Two living processes may have been given the same name. A living twin answers the group's call to join again at its next
  heartbeat, so no member with a given name is told to leave before that.
- A name that nobody has given is made from the host's name and the port. Another machine may have the same, so the old
  member must also have come from the same address.
- A living member that was told to leave joins again. Each member's nonce and start time go with its subscription
  (`user_data`), so the process that was started later finds its twin. Where the name was given, that process ends; else it
  logs a warning and goes on.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import orjson
import structlog
from aiokafka import AIOKafkaConsumer, errors
from aiokafka.client import AIOKafkaClient
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.coordinator.protocol import ConsumerProtocol, ConsumerProtocolMemberMetadata
from aiokafka.protocol.admin import DescribeGroupsRequest
from aiokafka.protocol.group import LeaveGroupRequest

from dispatcher.broker.base import BrokerRefused
from dispatcher.broker.kafka.client import reason_of

log = structlog.get_logger(__name__)

_UNUSUAL = re.compile(r"[^A-Za-z0-9._-]")
_LOOK = 0.05  # seconds between two looks at the group while joining
_MARGIN = 0.25  # seconds that a living member takes to join again
_SETTLING = 0.3  # seconds between two looks at a group that is rebalancing
_LOOKS = 100
_STABLE = "Stable"


@dataclass(frozen=True)
class MemberName:
    """The name of this process in its groups. One for all groups of a process, and for its life."""

    name: str
    given: bool
    """Whether somebody has set it; else it is made from the host's name."""
    nonce: str = field(default_factory=lambda: secrets.token_hex(8))
    started_ms: int = field(default_factory=lambda: int(time.time() * 1000))

    def of_worker(self, number: int) -> MemberName:
        """The name of one of several processes that share it."""
        return replace(self, name=f"{self.name}-{number}")

    def client_id(self, prefix: str) -> str:
        """What the consumers of its groups call themselves."""
        return f"{prefix}.{self.name}"

    def user_data(self) -> bytes:
        """What its members carry beside their subscriptions."""
        return orjson.dumps({"nonce": self.nonce, "started_ms": self.started_ms})


def member_name(setting: str, host: str, port: int | None) -> MemberName | None:
    """The name of this process: `setting` is `kafka.member_name`, `host` its machine's name, `port` where it serves HTTP.

    Two processes of one machine have two ports. None: it has none that another start of it would have too.
    """
    if setting == "off":
        return None
    if setting != "auto":
        return MemberName(setting, given=True)
    if not port or host.partition(".")[0] in {"", "localhost"}:
        return None
    return MemberName(f"{_UNUSUAL.sub('_', host)[:100]}-{port}", given=False)


class GroupMember(NamedTuple):
    """A member as the coordinator describes it."""

    id: str
    client_id: str
    host: str
    subscription: bytes | None
    """Only of a stable group."""


class Twin(NamedTuple):
    """Another living process with our name."""

    host: str
    started_ms: int


def assignor(name: MemberName | None) -> type[RoundRobinPartitionAssignor]:
    """The library's round robin, which tells the others of us."""
    if name is None:
        return RoundRobinPartitionAssignor  # type: ignore[no-any-return] # the library has no types
    user_data = name.user_data()

    class Named(RoundRobinPartitionAssignor):  # type: ignore[misc] # likewise
        @classmethod
        def metadata(cls, topics: Any) -> ConsumerProtocolMemberMetadata:
            return ConsumerProtocolMemberMetadata(cls.version, list(topics), user_data)

    return Named


async def evict_predecessors(
    consumer: AIOKafkaConsumer, group: str, name: MemberName, prefix: str, heartbeat: float
) -> None:
    """Have members of our name that are not ours leave, while the group waits for them. To be cancelled once we have joined.

    `heartbeat`: seconds after which a living member has heard that the group waits.
    """
    grace = heartbeat + _MARGIN if name.given else 0.0
    while True:
        await asyncio.sleep(_LOOK)
        coordinator = consumer._coordinator
        if coordinator is None or not coordinator.member_id or coordinator.coordinator_id is None:
            continue
        own = coordinator.member_id
        try:
            _, members = await _described(consumer._client, coordinator.coordinator_id, group)
            if (ours := members.get(own)) is None:
                continue
            if grace and predecessors(ours, members.values(), name, prefix):
                await asyncio.sleep(grace)
                grace = 0.0
                continue
            for member in predecessors(ours, members.values(), name, prefix):
                log.warning(
                    "a member with this process's name is still in the group: it has not said goodbye, and is told to leave",
                    group=group,
                    name=name.name,
                    member=member.id,
                    host=member.host,
                )
                await consumer._client.send(coordinator.coordinator_id, LeaveGroupRequest(group, member.id))
        except (errors.KafkaError, OSError, TimeoutError) as error:
            if not getattr(error, "retriable", True):
                log.warning("the group's members can't be listed", group=group, error=reason_of(error))
                return
            await asyncio.sleep(_SETTLING)
        else:
            return


def predecessors(ours: GroupMember, members: Any, name: MemberName, prefix: str) -> list[GroupMember]:
    """Who was this process before it was started again."""
    return [
        member
        for member in members
        if member.id != ours.id
        and member.client_id == name.client_id(prefix)
        and (name.given or member.host == ours.host)
    ]


async def living_twin(consumer: AIOKafkaConsumer, group: str, name: MemberName, prefix: str) -> Twin | None:
    """The process with our name that was started before us and is in the group, if there is one."""
    for _ in range(_LOOKS):
        coordinator = consumer._coordinator
        if coordinator is None:
            return None
        try:
            if coordinator.coordinator_id is not None:
                state, members = await _described(consumer._client, coordinator.coordinator_id, group)
                if state == _STABLE and coordinator.member_id in members:
                    return older_twin(members.values(), name, prefix)
        except (errors.KafkaError, OSError, TimeoutError):
            pass  # asked again
        await asyncio.sleep(_SETTLING)
    return None


def older_twin(members: Any, name: MemberName, prefix: str) -> Twin | None:
    """Of the members of a stable group, the one with our name that was started first, where that isn't us."""
    for member in members:
        if member.client_id != name.client_id(prefix) or not member.subscription:
            continue
        try:
            said = orjson.loads(ConsumerProtocol.METADATA.decode(member.subscription).user_data)
            nonce, started = str(said["nonce"]), int(said["started_ms"])
        except (ValueError, KeyError, TypeError):
            continue
        if nonce != name.nonce and (started, nonce) < (name.started_ms, name.nonce):
            return Twin(member.host, started)
    return None


def refusal(group: str, name: MemberName, twin: Twin) -> BrokerRefused:
    """Why this process ends."""
    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(twin.started_ms / 1000))
    return BrokerRefused(
        f"group {group}: another living process has the member name {name.name!r} (at {twin.host}, started {started}): give"
        " each process a kafka.member_name of its own, or leave it at `auto`; this one ends"
    )


async def _described(
    client: AIOKafkaClient, coordinator: int, group: str
) -> tuple[str, dict[str, GroupMember]]:
    """State and members. Not over the coordinator's own connection, which waits for the answer to our joining."""
    response = await client.send(coordinator, DescribeGroupsRequest([group]))
    code, _, state, _, _, members, *_ = response.groups[0]
    if code:
        error = errors.for_code(code)
        raise error
    return state, {
        id_: GroupMember(id_, client_id, host, subscription)
        for id_, client_id, host, subscription, _ in members
    }
