"""librdkafka's mock cluster, from the library inside the confluent-kafka wheel: Kafka's wire format without Java.

It keeps topics in memory, knows groups of one member, and no admin requests. Its C interface (rdkafka_mock.h) is
called directly, because the Python package leaves out what tests need: topics of a given size,
errors on demand, brokers that go down, groups that don't wait three seconds.
"""

from __future__ import annotations

import ctypes
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self

_PRODUCER = 0


class Unavailable(Exception):
    """There is no librdkafka here; the message says why."""


def _library() -> ctypes.CDLL:
    spec = find_spec("confluent_kafka")
    if spec is None or spec.origin is None:
        raise Unavailable("confluent-kafka is not installed")
    package = Path(spec.origin).parent
    for pattern in ("../confluent_kafka.libs/librdkafka*.so*", ".dylibs/librdkafka*.dylib"):
        # Its own dependencies are found only when the extension module has loaded them.
        for path in package.glob(pattern):
            import confluent_kafka  # noqa: F401, PLC0415

            return ctypes.CDLL(str(path))
    raise Unavailable("the confluent-kafka wheel brings no librdkafka of its own")


class MockCluster:
    """A mock cluster. A context manager; `start` and `stop` by hand work too."""

    def __init__(self, brokers: int = 1) -> None:
        self._brokers = brokers
        self._client: int | None = None
        self._cluster: int | None = None

    def start(self) -> None:
        library = self._library = _library()
        for name, result, arguments in (
            ("rd_kafka_conf_new", ctypes.c_void_p, []),
            (
                "rd_kafka_new",
                ctypes.c_void_p,
                [ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t],
            ),
            ("rd_kafka_destroy", None, [ctypes.c_void_p]),
            ("rd_kafka_mock_cluster_new", ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_int]),
            ("rd_kafka_mock_cluster_destroy", None, [ctypes.c_void_p]),
            ("rd_kafka_mock_cluster_bootstraps", ctypes.c_char_p, [ctypes.c_void_p]),
            ("rd_kafka_mock_group_initial_rebalance_delay_ms", None, [ctypes.c_void_p, ctypes.c_int32]),
            (
                "rd_kafka_mock_topic_create",
                ctypes.c_int,
                [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_int],
            ),
            (
                "rd_kafka_mock_push_request_errors_array",
                None,
                [ctypes.c_void_p, ctypes.c_int16, ctypes.c_size_t, ctypes.c_void_p],
            ),
            ("rd_kafka_mock_clear_request_errors", None, [ctypes.c_void_p, ctypes.c_int16]),
            ("rd_kafka_mock_broker_set_down", ctypes.c_int, [ctypes.c_void_p, ctypes.c_int32]),
            ("rd_kafka_mock_broker_set_up", ctypes.c_int, [ctypes.c_void_p, ctypes.c_int32]),
        ):
            function = getattr(library, name)
            function.restype = result
            function.argtypes = arguments
        text = ctypes.create_string_buffer(512)
        self._client = library.rd_kafka_new(_PRODUCER, library.rd_kafka_conf_new(), text, len(text))
        if not self._client:
            raise Unavailable(f"librdkafka: {text.value.decode()}")
        self._cluster = library.rd_kafka_mock_cluster_new(self._client, self._brokers)
        library.rd_kafka_mock_group_initial_rebalance_delay_ms(self._cluster, 0)

    def stop(self) -> None:
        if self._client is not None:
            self._library.rd_kafka_mock_cluster_destroy(self._cluster)
            self._library.rd_kafka_destroy(self._client)
            self._client = self._cluster = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def bootstrap(self) -> str:
        servers: bytes = self._library.rd_kafka_mock_cluster_bootstraps(self._cluster)
        return servers.decode()

    def create_topic(self, name: str, partitions: int) -> None:
        code = self._library.rd_kafka_mock_topic_create(self._cluster, name.encode(), partitions, 1)
        assert code == 0, f"librdkafka error {code}"

    def fail_next(self, api_key: int, *codes: int) -> None:
        """Answer the next requests of this kind with these Kafka error codes, one each."""
        array = (ctypes.c_int * len(codes))(*codes)
        self._library.rd_kafka_mock_push_request_errors_array(self._cluster, api_key, len(codes), array)

    def clear(self, api_key: int) -> None:
        """Forget what `fail_next` left over."""
        self._library.rd_kafka_mock_clear_request_errors(self._cluster, api_key)

    def down(self, broker: int = 1) -> None:
        """Close its connections, and refuse new ones."""
        self._library.rd_kafka_mock_broker_set_down(self._cluster, broker)

    def up(self, broker: int = 1) -> None:
        self._library.rd_kafka_mock_broker_set_up(self._cluster, broker)
