"""Where the daemon's time goes: py-spy attached to it, its samples sorted by what the work is for.

py-spy reads the process from outside, stopping it for each sample (without, stacks come out mixed),
so the run is much slower and only the shares are taken from it. Functions that mypyc has compiled stand in the C stack by
names of its making, which are turned into ours. Other C code (a system call, a hash, the HTTP parser) counts for the
function that called it, and what the event loop does by itself counts as the loop, but for reading from sockets.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Final
from xml.sax.saxutils import escape
from zlib import crc32

from benchmarks.harness import CORES, PROFILES, CannotRun, Table, end, pinned

_RATE: Final = 250  # samples a second; each stops the process for a moment

# What a frame's work is for; the frame nearest to the leaf that stands here decides. `file:Class.function`.
_WORK: Final = (
    (r"[:.]_?prefetch$", "prefetch"),
    (r"core/request/signing\.py:", "sign"),
    (r"core/request/build\.py:", "build the request"),
    (r"core/event/decode\.py:", "decode"),
    (r"core/subscription/index\.py:", "match"),
    (
        r"delivery/attempt_log\.py:|core/attempt/encode\.py:|aiokafka/producer/|broker/kafka/(producer|bulk)\.py:",
        "attempt log",
    ),
    (
        r"core/endpoint/lane\.py:|delivery/lanes\.py:|sending\.py:Sending\.(queue|_pump|start)$|delivery\.py:Delivery\.__init__$",
        "queue",
    ),
    (
        r"core/commit/(offsets|note)\.py:|delivery/settlement\.py:",
        "track and settle",
    ),
    (r"telemetry/metrics\.py:Histogram", "count"),
    (r"prometheus_client/|metrics\.py:|aiohttp/|dispatcher/api/", "be scraped"),
    (r"transport/tls\.py:", "TLS"),
    (
        r"transport/connection\.py:Connection\.(data_received|_finish|_feed|_rest|_reset|on_\w+)$",
        "receive, parse",
    ),
    (r"transport/", "send"),
    (r"^stream\.c:uv__read$", "receive, parse"),
    (r"telemetry/logs\.py:|structlog/|logging/", "log"),
    (r"engine\.py:Engine\._commit|delivery/membership\.py:|aiokafka/.*commit|coordinator", "commit"),
    (r"aiokafka/|dispatcher/broker/|asyncio/streams\.py:", "consume"),
    (r"runtime/timers\.py:|core/retry/wheel\.py:", "timers"),
    (r"engine\.py:Engine\.(_take_up|_consume|_pause|_room)$", "take up"),
    (r"dispatcher/delivery/(engine|deliveries)\.py:", "attempt, result"),
    (r"uvloop|asyncio/|dispatcher/(cli|app|__main__)\.py:|<module>", "event loop, sockets"),
)


class Profile:
    """The samples of one run."""

    def __init__(self, title: str) -> None:
        program = shutil.which("py-spy")
        if program is None:
            raise CannotRun(
                "not found: py-spy. `pip install py-spy` (in any environment on the PATH) brings it"
            )
        self._program = program
        self._name = re.sub(r"[^a-z]+", "-", title.lower())
        self._stacks: Counter[tuple[str, ...]] = Counter()

    @contextlib.contextmanager
    def of(self, pid: int) -> Iterator[None]:
        """Watch the process while the block runs."""
        with tempfile.TemporaryDirectory(prefix="bench-profile-") as folder:
            folded = Path(folder, "folded")
            command = [
                self._program,
                "record",
                "--native",
                "--pid",
                str(pid),
                "--format",
                "raw",
                "--rate",
                str(_RATE),
            ]
            spy = subprocess.Popen(
                pinned(CORES.server, [*command, "--duration", "600", "--output", str(folded)]),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
            try:
                yield
            finally:
                end(spy, signal.SIGINT)
            if not folded.exists():
                said = spy.stderr.read().decode() if spy.stderr else ""
                raise CannotRun(f"py-spy brought nothing: {said.strip()}")
            self._read(folded.read_text())

    def keep(self) -> None:
        """Draw the flame graph into benchmarks/profiles/."""
        PROFILES.mkdir(exist_ok=True)
        (PROFILES / f"{self._name}.svg").write_text(flame_graph(self._stacks), encoding="utf-8")

    def _read(self, text: str) -> None:
        for line in text.splitlines():
            stack, _, count = line.rpartition(" ")
            frames = tuple(_named(stack.split(";")))
            # With the C stack, a thread that waits for work isn't recognised as idle.
            if frames and not frames[-1].endswith("thread.py:_worker"):
                self._stacks[frames] += int(count)

    def table(self, cpu: float) -> Table:
        """Microseconds per delivery by what they are for; `cpu` are the seconds of one delivery altogether."""
        work: Counter[str] = Counter()
        for frames, count in self._stacks.items():
            work[_purpose(frames)] += count
        total = sum(work.values()) or 1
        table = Table(("where the time goes (py-spy)", "us per delivery", "share"))
        for name, count in work.most_common():
            table.add(name, f"{cpu * 1e6 * count / total:.1f}", f"{count / total:.0%}")
        table.add("together", f"{cpu * 1e6:.1f}", "100%")
        return table

    def top(self, number: int = 30) -> Table:
        """The functions in which most time was spent, what they called not included."""
        own: Counter[str] = Counter()
        for frames, count in self._stacks.items():
            own[frames[-1]] += count
        total = sum(own.values()) or 1
        table = Table(("function", "own share"))
        for name, count in own.most_common(number):
            table.add(f"`{name}`", f"{count / total:.1%}")
        return table


def _named(stack: Iterable[str]) -> Iterator[str]:
    """The frames that say what for: Python's, compiled ones, and that of reading a socket."""
    last = ""
    for text in stack:
        frame = _frame(text)
        if (".py:" in frame or frame == "stream.c:uv__read") and frame != last:
            last = frame
            yield frame


_COMPILED: Final = re.compile(r"CPy(?:Def|Py)_([a-z]+(?:_[a-z]+)*(?:___[a-z]+(?:_[a-z]+)*)*)___(.+)")


def _compiled(name: str) -> str | None:
    """`dispatcher/core/endpoint/lane.py:Lane.take`, of what mypyc calls `CPyDef_lane___Lane___take`."""
    found = _COMPILED.fullmatch(name)
    if found is None:
        return None
    module, function = found[1].replace("___", "/"), found[2]
    files = [file for file in _compiled_files() if f"/{file}".endswith(f"/{module}.py")]
    if not files:
        return None
    if of_class := re.fullmatch(r"(_?[A-Z][A-Za-z]*)___(.+)", function):
        function = f"{of_class[1]}.{of_class[2]}"
    elif of_generator := re.fullmatch(r"(.+?)_([A-Z][A-Za-z]*)_gen_____mypyc_generator_helper__", function):
        function = f"{of_generator[2]}.{of_generator[1]}"
    return f"{files[0]}:{function}"


@cache
def _compiled_files() -> tuple[str, ...]:
    """What hatch_build.py compiles: other folders have files of the same names."""
    text = Path(__file__).parents[1].joinpath("hatch_build.py").read_text(encoding="utf-8")
    modules = text.partition("MODULES = (")[2].partition(")")[0]
    return tuple(f"dispatcher/{module}" for module in re.findall(r'"(.+?)"', modules))


@cache
def _frame(text: str) -> str:
    """`file:function`, the file from its package on."""
    found = re.fullmatch(r"(.+) \((.+?)(?::\d+)?\)", text)
    if found is None:
        return text
    name, file = found[1], found[2]
    if (compiled := _compiled(name)) is not None:
        return compiled
    for root in ("site-packages/", "lib/python3.11/", "/dispatcher/"):
        if root in file:
            file = (
                file.rpartition(root)[2]
                if root != "/dispatcher/"
                else "dispatcher/" + file.rpartition(root)[2]
            )
            break
    return f"{file}:{name}"


def _purpose(frames: tuple[str, ...]) -> str:
    for frame in reversed(frames):
        for pattern, name in _WORK:
            if re.search(pattern, frame):
                return name
    return "other"


# The flame graph: one SVG without scripts. Hovering shows a frame's share.

_WIDTH: Final = 1400
_HEIGHT: Final = 17


class _Node:
    """A frame below the same callers."""

    __slots__ = ("below", "count")

    def __init__(self) -> None:
        self.count = 0
        self.below: dict[str, _Node] = {}


def flame_graph(stacks: Mapping[tuple[str, ...], int]) -> str:
    """Frames as boxes, callers below callees, as wide as their share of the samples."""
    root = _Node()
    for frames, count in stacks.items():
        root.count += count
        node = root
        for frame in frames:
            node = node.below.setdefault(frame, _Node())
            node.count += count
    total = root.count or 1
    boxes: list[str] = []
    deepest = 0

    def draw(node: _Node, depth: int, left: float) -> None:
        nonlocal deepest
        for name, child in sorted(node.below.items()):
            width = child.count / total * _WIDTH
            if width >= 0.5:
                deepest = max(deepest, depth)
                boxes.append(_box(name, child.count / total, depth, left, width))
                draw(child, depth + 1, left)
            left += width

    draw(root, 0, 0.0)
    height = (deepest + 1) * _HEIGHT
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 {-height} {_WIDTH} {height}" width="{_WIDTH}" '
        f'font-family="monospace" font-size="11">\n' + "\n".join(boxes) + "\n</svg>\n"
    )


def _box(name: str, share: float, depth: int, left: float, width: float) -> str:
    # The colour is the file's, so that a module is recognised.
    hue = crc32(name.partition(":")[0].encode()) % 360
    top = -(depth + 1) * _HEIGHT
    room = int(width / 6.8)
    short = name if len(name) <= room else name.rpartition(":")[2]
    label = escape(short) if len(short) <= room else ""
    return (
        f'<g><title>{escape(name)} {share:.1%}</title><rect x="{left:.1f}" y="{top}" width="{width:.1f}" '
        f'height="{_HEIGHT - 1}" fill="hsl({hue},60%,75%)"/><text x="{left + 2:.1f}" y="{top + 12}">{label}</text></g>'
    )
