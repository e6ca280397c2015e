"""Topics and the offsets of groups, asked and changed with the library's admin client.

The library would create a topic by asking for it. Whether a topic is there is asked without.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import structlog
from aiokafka import TopicPartition as KafkaPartition, errors
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.client import AIOKafkaClient

from dispatcher.broker.assignment import RETRY_SUFFIX, inherited
from dispatcher.broker.base import (
    BrokerError,
    BrokerRefused,
    BrokerUnavailable,
    GroupState,
    PartitionInfo,
    Position,
    Remembered,
    TopicInfo,
    TopicPartition,
    TopicSpec,
    check_exact,
    creation_command,
)
from dispatcher.broker.kafka.client import describe, mapped, reason_of
from dispatcher.broker.kafka.lookup import RecordLookup
from dispatcher.broker.kafka.wire.metadata import TopicsSeen, look, survey
from dispatcher.settings.groups import KafkaSettings

log = structlog.get_logger(__name__)
T = TypeVar("T")

_STARTING = 15.0  # seconds that a broker may take to become able to do what it is asked
_TOO_FEW = 5.0  # of those, seconds for other brokers to appear
_AGAIN = 0.25
_MOST = 100  # groups that are looked at
_NO_RIGHT = {errors.TopicAuthorizationFailedError, errors.ClusterAuthorizationFailedError}
_SHOWN_CONFIGS = {
    "cleanup.policy",
    "retention.ms",
    "retention.bytes",
    "max.message.bytes",
    "min.compaction.lag.ms",
    "min.insync.replicas",
}


class KafkaAdmin:
    """The topics of one cluster, and what groups have committed. Owns the library's admin client, a new one after an error."""

    def __init__(
        self,
        client: Callable[[], Awaitable[AIOKafkaClient]],
        options: Callable[[], Mapping[str, Any]],
        settings: KafkaSettings,
        lookup: RecordLookup,
    ) -> None:
        """`client` gives one that is connected, or raises; `options` are what to make another one with."""
        self._client = client
        self._options = options
        self.settings = settings
        self._lookup = lookup
        self._admin: AIOKafkaAdminClient | None = None

    async def close(self) -> None:
        admin, self._admin = self._admin, None
        if admin is not None:
            with contextlib.suppress(errors.KafkaError, OSError, TimeoutError):
                await admin.close()

    async def look(self, topics: Sequence[str]) -> dict[str, Remembered]:
        """Those of these topics that exist."""
        seen = await look(await self._client(), topics)
        for topic in sorted(seen.denied):
            raise BrokerRefused(f"topic {topic}: {reason_of(errors.TopicAuthorizationFailedError())}")
        return seen.there

    async def survey(self, topics: Sequence[str], known: Mapping[str, Remembered]) -> TopicsSeen:
        """The same for what is already `known`: a topic counts as gone only where no broker knows it any more."""
        return await survey(await self._client(), topics, known)

    async def _describe(self, topics: Sequence[str] | None) -> dict[str, list[int]]:
        return await describe(await self._client(), topics)

    async def readers_of(self, topics: Collection[str], suffix: str) -> Mapping[str, GroupState]:
        found = await self.look(sorted(topics))
        keys = [
            KafkaPartition(name, number)
            for name, topic in found.items()
            for number in range(topic.partitions)
        ]
        if not keys:
            return {}
        return await self.ask(
            lambda admin: _readers_of(admin, keys, suffix), "asking for the groups that read the retry topics"
        )

    async def positions_of(self, group: str, topic: str) -> Mapping[TopicPartition, Position]:
        found = await self.look([topic])
        keys = (
            [KafkaPartition(topic, number) for number in range(found[topic].partitions)]
            if topic in found
            else []
        )
        if not keys:
            return {}
        return _positions(
            await self.ask(
                lambda admin: offsets_of(admin, group, keys), f"asking for the offsets of group {group}"
            )
        )

    async def has_commits(self, group: str, topics: Collection[str]) -> bool:
        found = await self.look(sorted(topics))
        keys = [
            KafkaPartition(name, number)
            for name, topic in found.items()
            for number in range(topic.partitions)
        ]
        committed = await self.ask(
            lambda admin: offsets_of(admin, group, keys),
            f"asking for the offsets of group {group}",
        )
        return any(at.offset >= 0 for at in committed.values())

    async def inherited(self, group: str, topics: Collection[str]) -> Mapping[TopicPartition, Position]:
        return inherited(group, await self.readers_of(topics, RETRY_SUFFIX))

    async def ensure_topics(self, topics: Sequence[TopicSpec], *, create: bool) -> Sequence[str]:
        seen = await look(await self._client(), [spec.name for spec in topics])
        if seen.denied:
            raise BrokerRefused(self._denied(sorted(seen.denied)))
        found = {name: topic.partitions for name, topic in seen.there.items()}
        missing = [spec for spec in topics if spec.name not in found]
        exact = [spec for spec in topics if spec.exact and spec.name in found]
        if exact:
            configs = await self._configs([spec.name for spec in exact])
            for spec in exact:
                check_exact(spec, found[spec.name], configs.get(spec.name, {}))
        if not create or not missing:
            return [spec.name for spec in missing]
        await self.ask(lambda admin: self._create(admin, missing), "creating topics")
        names = [spec.name for spec in missing]
        deadline = time.monotonic() + self.settings.request_timeout
        while left := sorted(set(names) - (await self._describe(names)).keys()):
            if time.monotonic() > deadline:
                return left
            await asyncio.sleep(0.1)
        return []

    def _denied(self, topics: Sequence[str]) -> str:
        named = " ".join(f"--topic {topic}" for topic in topics)
        return (
            f"the broker does not let this user see the topics {', '.join(topics)}: make those that are new since an upgrade"
            f" (`dispatcher topics --create` as a user that may), and allow this one to use them:"
            f" `kafka-acls.sh --bootstrap-server ... --add --allow-principal {self._principal} --operation Read"
            f" --operation Write {named}`"
        )

    @property
    def _principal(self) -> str:
        name = self.settings.sasl_username
        return "User:<the client's name>" if name is None else f"User:{name}"

    async def _create(self, admin: AIOKafkaAdminClient, specs: Sequence[TopicSpec]) -> None:
        began = time.monotonic()
        while admin._client.cluster.controller is None:
            if time.monotonic() - began > _STARTING:
                raise BrokerUnavailable("the cluster has no controller just now")
            await asyncio.sleep(_AGAIN)
            await admin._client.force_metadata_update()
        defaults: Mapping[str, str] = {}
        while True:
            request = [
                NewTopic(
                    spec.name,
                    spec.partitions or int(defaults.get("num.partitions", -1)),
                    spec.replication or int(defaults.get("default.replication.factor", -1)),
                    # Without it -1, the broker's default, is not let through.
                    replica_assignments={}
                    if None in (spec.partitions, spec.replication) and not defaults
                    else None,
                    topic_configs=dict(spec.config),
                )
                for spec in specs
            ]
            response = await admin.create_topics(request)
            again = False
            refused: list[str] = []
            for name, code, *said in response.topic_errors:
                error = errors.for_code(code)
                if error is errors.NoError:
                    log.info("topic created", topic=name)
                elif error is errors.TopicAlreadyExistsError:
                    continue
                elif (
                    error in {errors.InvalidReplicationFactorError, errors.InvalidPartitionsError}
                    and not defaults
                ):
                    defaults = await self._broker_defaults(admin)  # brokers before 2.4 don't know -1
                    again = True
                elif error in _NO_RIGHT:
                    refused.append(name)
                elif time.monotonic() - began < _patience(error):
                    again = True
                    log.info("the topic can't be created yet, trying again", topic=name, error=error.__name__)
                else:
                    detail = said[0] if said and said[0] else error.description
                    raise BrokerRefused(f"topic {name} could not be created: {detail}")
            if refused:
                raise BrokerRefused(self._not_made([spec for spec in specs if spec.name in refused]))
            if not again:
                return
            await asyncio.sleep(_AGAIN)
            await admin._client.force_metadata_update()

    def _not_made(self, specs: Sequence[TopicSpec]) -> str:
        named = " ".join(f"--topic {spec.name}" for spec in specs)
        return (
            f"the topics {', '.join(spec.name for spec in specs)} are missing, and the broker does not let this user create"
            f" topics. Make them: {'; '.join(f'`{creation_command(spec)}`' for spec in specs)}. Or allow it:"
            f" `kafka-acls.sh --bootstrap-server ... --add --allow-principal {self._principal} --operation Create {named}`"
        )

    async def _broker_defaults(self, admin: AIOKafkaAdminClient) -> Mapping[str, str]:
        cluster = await admin.describe_cluster()
        wanted = dict.fromkeys(("num.partitions", "default.replication.factor"))
        node = str(cluster["brokers"][0]["node_id"])
        (response,) = await admin.describe_configs([ConfigResource(ConfigResourceType.BROKER, node, wanted)])
        return {entry[0]: entry[1] for resource in response.resources for entry in resource[4]}

    async def topics(
        self, group: str | None = None, *, only: Callable[[str], bool] | None = None
    ) -> Sequence[TopicInfo]:
        found = await self._describe(None)
        if only is not None:
            found = {name: numbers for name, numbers in found.items() if only(name)}
        keys = [KafkaPartition(name, number) for name, numbers in found.items() for number in numbers]
        if not keys:
            return []

        first, end = await self._lookup.extents(found)
        committed: Mapping[Any, Any] = {}
        if group is not None:
            name = group
            committed = await self.ask(
                lambda admin: admin.list_consumer_group_offsets(name, partitions=keys),
                f"asking for the offsets of group {group}",
            )
        configs = await self._configs(list(found))
        return [
            TopicInfo(
                name,
                [
                    PartitionInfo(
                        number,
                        first[name, number],  # a partition equals any tuple of the same values
                        end[name, number],
                        committed[name, number].offset
                        if (name, number) in committed and committed[name, number].offset >= 0
                        else None,
                    )
                    for number in numbers
                ],
                configs.get(name, {}),
            )
            for name, numbers in sorted(found.items())
        ]

    async def _configs(self, topics: Iterable[str]) -> dict[str, dict[str, str]]:
        """What may be shown of each topic's config; nothing where that isn't allowed."""
        resources = [ConfigResource(ConfigResourceType.TOPIC, topic) for topic in topics]
        try:
            (response,) = await self.ask(
                lambda admin: admin.describe_configs(resources), "asking for configs"
            )
        except BrokerError as error:
            log.info("topic configs can't be read", error=str(error))
            return {}
        return {
            name: {entry[0]: entry[1] for entry in entries if entry[0] in _SHOWN_CONFIGS}
            for _, _, _, name, entries in response.resources
        }

    async def ask(self, ask: Callable[[AIOKafkaAdminClient], Awaitable[T]], doing: str) -> T:
        """What `ask` returns of the library's admin client; asked again while the broker starts."""
        await self._client()
        deadline = time.monotonic() + _STARTING
        try:
            async with asyncio.timeout(self.settings.request_timeout):
                while True:
                    if self._admin is None:
                        admin = AIOKafkaAdminClient(**self._options())
                        try:
                            await admin.start()
                        except BaseException:
                            await admin.close()
                            raise
                        self._admin = admin
                    try:
                        return await ask(self._admin)
                    except errors.BrokerResponseError as error:
                        # A broker that has just started has no coordinator and no controller yet, and says so.
                        if not error.retriable or time.monotonic() > deadline:
                            raise
                    await asyncio.sleep(_AGAIN)
                    await self._admin._client.force_metadata_update()
        except (errors.KafkaError, OSError, TimeoutError) as error:
            await self.close()
            raise mapped(error, doing) from error


async def _readers_of(
    admin: AIOKafkaAdminClient, partitions: Sequence[KafkaPartition], suffix: str
) -> Mapping[str, GroupState]:
    """The groups whose names end in `suffix` and that have committed offsets on these partitions.

    None, where the broker speaks no such request: then nothing is carried over from a renamed group.
    """
    try:
        listed = await admin.list_consumer_groups()
    except errors.IncompatibleBrokerVersion:
        return {}
    names = sorted(name for name, *_ in listed if name.endswith(suffix))
    found: dict[str, GroupState] = {}
    for name in names[:_MOST]:
        committed = _positions(await offsets_of(admin, name, partitions))
        if committed:
            found[name] = GroupState(committed, await _alive(admin, name))
    return found


def _positions(offsets: Mapping[Any, Any]) -> dict[TopicPartition, Position]:
    return {
        TopicPartition(*key): Position(at.offset, at.metadata or "")
        for key, at in offsets.items()
        if at.offset >= 0
    }


async def offsets_of(
    admin: AIOKafkaAdminClient, group: str, partitions: Sequence[KafkaPartition]
) -> Mapping[Any, Any]:
    """What the group has committed on each of these, -1 for nothing. Raises KafkaError where its coordinator doesn't tell."""
    offsets: Mapping[Any, Any] = await admin.list_consumer_group_offsets(group, partitions=list(partitions))
    if len(offsets) < len(partitions):
        # The library passes over the error of the whole answer, which has no partitions then.
        raise errors.GroupCoordinatorNotAvailableError
    return offsets


async def _alive(admin: AIOKafkaAdminClient, group: str) -> bool:
    (response,) = await admin.describe_consumer_groups([group])
    return any(described[5] for described in response.groups)  # its members


def _patience(error: type[errors.BrokerResponseError]) -> float:
    """For how many seconds a topic that the broker refuses with this error is tried again: it may be starting."""
    if error is errors.InvalidReplicationFactorError:
        return _TOO_FEW
    return _STARTING if error.retriable else 0.0
