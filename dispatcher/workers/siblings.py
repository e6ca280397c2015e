"""The other workers of this machine, as the first one asks them: their metrics, and whether they are ready."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import aiohttp
import orjson

from dispatcher.workers.exposition import merged

_PATIENCE: Final = aiohttp.ClientTimeout(total=2.0)  # Prometheus gives up after 10 s in all
_FIRST: Final = 1


class Siblings:
    """Asks over the loopback. One that is away or hangs is said to be, and holds nobody up for longer than two seconds."""

    def __init__(self, ports: Sequence[int]) -> None:
        """`ports`: of the workers 2, 3 and so on."""
        self._ports = dict(enumerate(ports, _FIRST + 1))

    async def metrics(self, own: str) -> str:
        """The metrics of all, each sample with its worker."""
        texts = await asyncio.gather(*(self._get(port, "/metrics") for port in self._ports.values()))
        others = (None if text is None else text.decode() for text in texts)
        return merged({_FIRST: own, **dict(zip(self._ports, others, strict=True))})

    async def warnings(self) -> list[str]:
        """What isn't as it should be with the others, for `/readyz`: a sentence each."""
        answers = await asyncio.gather(*(self._get(port, "/readyz") for port in self._ports.values()))
        found: list[str] = []
        for worker, answer in zip(self._ports, answers, strict=True):
            if answer is None:
                found.append(f"worker {worker} does not answer: it is being started, or hangs")
                continue
            said = orjson.loads(answer)
            found += [
                f"worker {worker}: {sentence}"
                for kind in ("problems", "warnings")
                for sentence in said.get(kind, ())
            ]
        return found

    async def _get(self, port: int, path: str) -> bytes | None:
        try:
            async with (
                aiohttp.ClientSession(timeout=_PATIENCE, trust_env=False) as session,
                session.get(f"http://127.0.0.1:{port}{path}") as response,
            ):
                return await response.read()
        except (aiohttp.ClientError, TimeoutError):
            return None
