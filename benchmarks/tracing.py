"""What traces cost: `python -m benchmarks tracing`.

The engine's case of `engine_case.py` (engine and transport, no system calls) with tracing off, with 1 % of the deliveries sampled, and with all of
them, in turns. CPU of all threads, the exporter's too, until the collector has the last span: batches leave when they are full, and the last
one at the end of each round. The collector is another process. A case with
tracing on and nothing sampled tells what the question alone costs. Compiled as the image is, but for the exporter, which is OpenTelemetry's.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final

from benchmarks.harness import ROOT, Section, Table, in_turns, median, spread
from benchmarks.toggles import engine_cost, site_of

SIDES: Final = {"off": "off", "on, 0 %": "0", "on, 1 %": "0.01", "on, 100 %": "1"}
CASE: Final = "plain"
_ROUNDS: Final = 7
_DELIVERIES: Final = 50_000
_PROMISED: Final = 0.02
_WHOLE: Final = 32.0
"""Microseconds that a delivery takes end to end, on this kind of machine (`docs/capacity.md`, the older one, at best)."""


def _swallow() -> None:
    """A collector that takes everything and reads nothing."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()  # until the benchmark ends


@contextmanager
def _collector() -> Iterator[str]:
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.tracing"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stdin is not None
        try:
            yield f"http://127.0.0.1:{int(child.stdout.readline())}"
        finally:
            child.stdin.close()


def _cost(site: Path, ratio: str, url: str, deliveries: int, rounds: int) -> float:
    """Microseconds of CPU a delivery."""
    return engine_cost(site, CASE, str(deliveries), str(rounds), ratio, url)


def run(
    command: str, *, quick: bool, compiled: bool, count: int | None = None, runs: int | None = None
) -> Section:
    """Each side in turns."""
    deliveries = count or (10_000 if quick else _DELIVERIES)
    rounds = runs or (2 if quick else _ROUNDS)
    section = Section("Tracing", command)
    table = Table(
        ("tracing", "us a delivery", "us more, by round", "median", f"of {_WHOLE:.0f} us", "ratio, median")
    )
    with tempfile.TemporaryDirectory(prefix="bench-tracing-") as name, _collector() as url:
        site = site_of(None, Path(name, "site"), compiled=compiled)
        seen = in_turns(tuple(SIDES), rounds, lambda side: _cost(site, SIDES[side], url, deliveries, 3))
    for side, costs in seen.items():
        more = [cost - off for cost, off in zip(costs, seen["off"], strict=True)]
        ratios = [cost / off for cost, off in zip(costs, seen["off"], strict=True)]
        table.add(
            side,
            spread(costs, lambda value: f"{value:.2f}"),
            spread(more, lambda value: f"{value:+.2f}"),
            f"{median(more):+.2f}",
            f"{median(more) / _WHOLE:+.1%}",
            f"{median(ratios):.3f}",
        )
    section.add(table)
    section.add(
        f"{rounds} rounds of {deliveries:,} deliveries, case `{CASE}`. No system call of a delivery is in these figures, so the ratios are higher than a daemon's; "
        f"the column beside it sets what comes on top against a whole delivery of {_WHOLE:.0f} us, of which 1 % sampled may take {_PROMISED:.0%}."
    )
    return section


if __name__ == "__main__":
    _swallow()
