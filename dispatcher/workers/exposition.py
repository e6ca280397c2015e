"""The metrics of several workers as one text, each sample with the worker that it is of.

Prometheus' text format 0.0.4 (https://prometheus.io/docs/instrumenting/exposition_formats/) wants all samples of a family together, under
one HELP and one TYPE. The texts are ours and well-formed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

_UP: Final = "dispatcher_worker_up"


class _Family:
    """One metric of all workers."""

    def __init__(self) -> None:
        self.head: dict[str, str] = {}  # HELP and TYPE, of the first worker that has them
        self.samples: list[str] = []


def merged(texts: Mapping[int, str | None]) -> str:
    """One text of each worker's; None where a worker gave none."""
    families: dict[str, _Family] = {}
    for worker, text in texts.items():
        if text is not None:
            _add(families, worker, text.splitlines())
    families.setdefault(_UP, _Family()).samples += [
        f'{_UP}{{worker="{worker}"}} {int(text is not None)}' for worker, text in texts.items()
    ]
    return "".join(
        f"{line}\n" for family in families.values() for line in (*family.head.values(), *family.samples)
    )


def _add(families: dict[str, _Family], worker: int, lines: Iterable[str]) -> None:
    family = _Family()
    for line in lines:
        if line.startswith(("# HELP ", "# TYPE ")):
            _, kind, name, *_ = line.split(" ", 3)
            family = families.setdefault(name, _Family())
            family.head.setdefault(kind, line)
        elif line and not line.startswith("#"):
            family.samples.append(_labelled(line, worker))


def _labelled(sample: str, worker: int) -> str:
    """The sample with one more label, as the first."""
    brace, space = sample.find("{"), sample.find(" ")
    if brace == -1 or space < brace:
        return f'{sample[:space]}{{worker="{worker}"}}{sample[space:]}'
    more = "" if sample[brace + 1] == "}" else ","
    return f'{sample[: brace + 1]}worker="{worker}"{more}{sample[brace + 1 :]}'
