"""Coverage-guided fuzzing of everything that reads what an endpoint sends.

    pip install atheris
    cp -r tests/fuzz/corpus /tmp/corpus
    python tests/fuzz/fuzz_response.py /tmp/corpus -dict=tests/fuzz/http.dict -max_total_time=600 -max_len=4096

The first bytes of an input say how it is cut into segments and how often it is repeated; the rest is what the endpoint sends, on a fresh connection and then on whatever is left of it. Any exception,
a second result, a missing result or a connection reused out of order is a finding.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import atheris  # type: ignore[import-untyped,import-not-found,unused-ignore]  # not in the development environment

sys.path.insert(0, str(Path(__file__).parents[2]))

with atheris.instrument_imports(include=["dispatcher.transport"]):
    import dispatcher.transport.connection

import structlog

from dispatcher.core.request.results import Response
from tests.zoo.wire import Wire

SENTINEL = b"HTTP/1.1 418 Teapot\r\nContent-Length: 8\r\n\r\nsentinel"


class Finding(Exception):
    """Something that must not happen."""


def _must_not_be_logged(_logger: object, _method: str, _event: object) -> str:
    raise Finding("an exception was caught and logged")


def check(wire: Wire) -> None:
    if len(wire.told) > 1:
        raise Finding(f"told twice: {wire.told}")
    if wire.idle and (wire.closed or not wire.told or not isinstance(wire.told[0], Response)):
        raise Finding("idle, and not in order")


def test_one_input(data: bytes) -> None:
    if len(data) < 3:
        return
    step = 1 + data[0] if data[0] < 250 else 65536
    responses = 1 + data[1] % 3
    data = data[2:] * (1, 1, 1, 40)[data[1] >> 6]  # long enough for the caps
    wire = Wire()
    for _ in range(responses):
        for start in range(0, len(data), step):
            if wire.idle:
                break
            wire.receive(data[start : start + step])
            check(wire)
        if not wire.idle:
            break
        wire.told.clear()
        wire.again()
    else:
        # The connection says that it is in order: then the next response must be read as it is.
        if not wire.told and not wire.closed:
            wire.receive(SENTINEL)
            if wire.told != [Response(418, None, None, b"sentinel")]:
                raise Finding(f"out of step: {wire.told}")
            return
    wire.end()
    if len(wire.told) + wire.resent != 1:
        raise Finding(f"not told at the end: {wire.told}, resent {wire.resent}")
    if wire.shared.closed != 1 or wire.gone != 1 or wire.timer is not None:
        raise Finding("left something open")


def main() -> None:
    logging.disable(logging.CRITICAL)
    structlog.configure(processors=[_must_not_be_logged])
    dispatcher.transport.connection.log = structlog.get_logger()
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
