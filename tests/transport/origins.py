"""Origins that tests of the transport send to, and a look-up that answers from a dictionary."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from dispatcher.core.request.results import Failure, Reason, Result
from dispatcher.core.request.urls import Origin
from dispatcher.transport.dial import LookupFailed
from tests.zoo.harness import Harness

Make = Callable[..., Harness]


class Names:
    """A look-up with answers from a dictionary; `asked` are the questions."""

    def __init__(self, answers: dict[str, Sequence[str] | Reason]) -> None:
        self.answers = answers
        self.asked: list[str] = []
        self.delay = 0.0

    async def resolve(self, host: str) -> Sequence[str]:
        self.asked.append(host)
        await asyncio.sleep(self.delay)
        answer = self.answers[host]
        if isinstance(answer, Reason):
            raise LookupFailed(Failure(answer, host))
        return answer

    async def close(self) -> None:
        self.answers = {}


def http(port: int, host: str = "127.0.0.1") -> Origin:
    return Origin("http", host, port)


def reason(result: Result) -> Reason:
    assert isinstance(result, Failure), result
    return result.reason
