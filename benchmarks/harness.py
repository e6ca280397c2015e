"""What every benchmark here needs: an endpoint, a yardstick, one core each, and a page of results.

A rate by itself says more about the machine than about the program, and on shared or virtual
machines it changes from minute to minute. So nothing is reported alone: wrk, a load generator in
C, sends requests of the same size to the same nginx from the same core, in turns with what is
measured, and the ratio of the two is the result.

Two cores, two sides. The *client* core runs what is measured, or wrk, never both at once; the
*server* core runs nginx and whatever else serves (Kafka). The benchmark process itself sits on the
server core and mostly sleeps.

Rules:

1. Loopback only: nginx listens on 127.0.0.0/8 addresses by name, never on a wildcard.
2. Every load ends: by count where something is delivered, by time where something is driven.
3. What was started here is ended here, by its pid, also when the benchmark fails.
4. A figure that disturbances may have bent says so: each section states what other processes and the
   hypervisor took while it was measured.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import gc
import itertools
import math
import os
import platform
import random
import re
import resource
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Generic, NamedTuple, Self, TypeVar

import orjson
import trustme

ROOT: Final = Path(__file__).parents[1]
RESULTS: Final = Path(__file__).with_name("RESULTS.md")
PROFILES: Final = Path(__file__).with_name("profiles")
BODY_BYTES: Final = 1024
CONNECTIONS: Final = 64
SECRET: Final = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
NOW: Final = 1_700_000_000  # Unix seconds, where a benchmark needs some

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")

# What to install where something is missing, as Debian and Ubuntu call it.
_PACKAGES: Final = {
    "nginx": "nginx-light",
    "wrk": "wrk",
    "taskset": "util-linux",
    "java": "default-jre-headless",
    "mvn": "maven",
}

T = TypeVar("T")


class CannotRun(Exception):
    """The benchmark can't be run here; the message says what to do."""


def require(*tools: str) -> None:
    """Raise CannotRun, with what to install, unless all of them can be started."""
    if sys.platform != "linux":
        raise CannotRun("the benchmarks pin processes and read /proc: they need Linux")
    missing = [tool for tool in tools if shutil.which(tool) is None and not Path("/usr/sbin", tool).exists()]
    if missing:
        packages = " ".join(dict.fromkeys(_PACKAGES.get(tool, tool) for tool in missing))
        raise CannotRun(f"not found: {', '.join(missing)}. On Debian or Ubuntu: apt-get install {packages}")


def require_plots() -> None:
    """Raise CannotRun unless plots can be drawn, which is what some of the longest runs end with."""
    if find_spec("matplotlib") is None:
        raise CannotRun("not found: matplotlib, for the plots. `pip install matplotlib` brings it")


# Cores and processes.


class Cores(NamedTuple):
    """Which core runs what is measured, and which one what answers it."""

    client: int
    server: int

    @classmethod
    def choose(cls) -> Cores:
        """The last two cores this process may use: the first one gets most of the kernel's own work."""
        usable = sorted(os.sched_getaffinity(0))
        if len(usable) < 2:
            raise CannotRun("two cores are needed: one for what is measured, one for what answers it")
        return cls(client=usable[-1], server=usable[-2])


try:
    CORES: Final = Cores.choose()
except (AttributeError, CannotRun):  # `main` says so; importing must work anywhere
    CORES = Cores(0, 0)  # type: ignore[misc]


def pinned(core: int, command: Sequence[str]) -> list[str]:
    """The command, bound to one core with everything it starts."""
    return ["taskset", "--cpu-list", str(core), *command]


@contextlib.contextmanager
def on_core(core: int) -> Iterator[None]:
    """This thread, and what it starts, on one core for a while."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def end(
    process: subprocess.Popen[bytes], number: signal.Signals = signal.SIGTERM, patience: float = 30.0
) -> int:
    """End it by its pid, by force if it doesn't listen; return its exit code."""
    if process.poll() is None:
        process.send_signal(number)
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(condition: Callable[[], bool], within: float, what: str) -> None:
    """Poll until it holds; CannotRun after so many seconds."""
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            raise CannotRun(f"{what}: not within {within:g} s")
        time.sleep(0.02)


def accepts(port: int, address: str = "127.0.0.1") -> bool:
    with contextlib.suppress(OSError), socket.create_connection((address, port), 1.0):
        return True
    return False


class Usage(NamedTuple):
    """What a process has taken so far."""

    cpu: float  # seconds, user and system
    rss: int  # bytes
    peak: int  # bytes, the largest RSS ever

    @classmethod
    def of(cls, pid: int) -> Usage:
        return cls(_cpu_seconds(pid), _status(pid, "VmRSS"), _status(pid, "VmHWM"))


def _cpu_seconds(pid: int) -> float:
    # The command's name may contain spaces and parentheses; what follows its last one doesn't.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def tree_cpu(pid: int) -> float:
    """CPU seconds of a process, its children, and those of its children that have ended: a database server's, of one process a connection."""
    total = 0.0
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError, IndexError, ValueError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(entry.name) == pid:
                total += sum(map(int, fields[11:15]))
            elif int(fields[1]) == pid:
                total += int(fields[11]) + int(fields[12])
    return total / _TICKS


def _status(pid: int, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


class Sampler:
    """Watches a process from a thread: CPU and RSS, some times a second."""

    def __init__(self, pid: int, interval: float = 0.25) -> None:
        self._pid = pid
        self._interval = interval
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.samples: list[tuple[float, Usage]] = []  # (time.monotonic(), what it had taken)

    def _watch(self) -> None:
        while True:
            with contextlib.suppress(OSError):
                self.samples.append((time.monotonic(), Usage.of(self._pid)))
            if self._over.wait(self._interval):
                return

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def peak(self) -> int:
        """The largest RSS, in bytes."""
        return max((usage.peak for _, usage in self.samples), default=0)

    def cpu_between(self, begin: float, over: float) -> float:
        """CPU seconds taken between two times of `time.monotonic()`."""
        return self._cpu_at(over) - self._cpu_at(begin)

    def _cpu_at(self, moment: float) -> float:
        return crossing([(t, usage.cpu) for t, usage in self.samples], moment)


def crossing(points: Sequence[tuple[float, float]], x: float) -> float:
    """The y that belongs to x, between two points of a rising curve."""
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x0 <= x <= x1:
            return y0 if x1 == x0 else y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    if not points:
        raise ValueError("no points")
    return points[0][1] if x < points[0][0] else points[-1][1]


def in_turns(sides: Sequence[str], rounds: int, measure: Callable[[str], float]) -> dict[str, list[float]]:
    """What each of the sides measured, round by round. The order changes from round to round."""
    seen: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(rounds):
        for side in reversed(sides) if turn % 2 else sides:
            seen[side].append(measure(side))
    return seen


# The daemon, as the container image has it.

_compiled: tempfile.TemporaryDirectory[str] | None = None
_python = (sys.executable, platform.python_version())  # what runs the daemon


def use_python(path: str) -> None:
    """Have daemons run by another interpreter, of this one's version, with this one's packages.

    It matters how an interpreter was built: those of distributions and of the python images are optimized by a profile
    (`--enable-optimizations`), one built without (pyenv's default) takes a fifth more per delivery. CannotRun if it doesn't fit.
    """
    global _python  # noqa: PLW0603 - one for the process
    found = shutil.which(path)
    if found is None:
        raise CannotRun(f"there is no interpreter {path}")
    version = subprocess.run(
        [found, "-c", "import platform; print(platform.python_version())"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    if version.split(".")[:2] != platform.python_version().split(".")[:2]:
        raise CannotRun(
            f"{path} is Python {version or '?'}, the packages here are for {platform.python_version()}"
        )
    _python = (found, version)


def daemon_python() -> str:
    """The interpreter to start daemons with."""
    return _python[0]


def compile_daemon() -> None:
    """Build the wheel with its hot path compiled; `daemon_environ` has daemons run from it, from now on.

    Takes about a minute. CannotRun where there is no C compiler.
    """
    global _compiled  # noqa: PLW0603 - one for the process, which builds it once
    _compiled = compiled_from(ROOT)


def compiled_from(root: Path) -> tempfile.TemporaryDirectory[str]:
    """The compiled package of a checkout, in a folder to put on the path. CannotRun where it can't be built."""
    folder = tempfile.TemporaryDirectory(prefix="bench-compiled-")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheels = Path(folder.name, "wheels")
    for command in (
        ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels), str(root)],
        [
            "install",
            "--no-deps",
            "--no-index",
            "--find-links",
            str(wheels),
            "--target",
            folder.name,
            "webhook-dispatcher",
        ],
    ):
        ran = subprocess.run(
            [*pip, *command],
            env={**os.environ, "DISPATCHER_COMPILE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if ran.returncode:
            raise CannotRun(
                f"the daemon can't be compiled (--pure measures the sources as they are): {ran.stderr.strip()[-2000:]}"
            )
    return folder


@contextlib.contextmanager
def revision(name: str, *, compiled: bool) -> Iterator[str]:
    """The package of another revision of this repository, in a folder to put on the path. CannotRun if there is none."""
    with tempfile.TemporaryDirectory(prefix="bench-revision-") as folder:
        git = ["git", "-C", str(ROOT)]
        archive = subprocess.run([*git, "archive", name], capture_output=True, check=False)
        if archive.returncode:
            raise CannotRun(f"there is no revision {name}: {archive.stderr.decode().strip()}")
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        if not compiled:
            yield folder
            return
        with compiled_from(Path(folder)) as site:
            yield site


def daemon_environ(site: str | None = None) -> dict[str, str]:
    """What to start a daemon with, from any folder but the repository's. `site` is another revision's package."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("DISPATCHER_")}
    first = site if _compiled is None or site is not None else _compiled.name
    paths = [] if first is None else [first]
    if daemon_python() != sys.executable:
        paths += [sysconfig.get_path("purelib"), str(ROOT)]
    if paths:
        environ["PYTHONPATH"] = os.pathsep.join(paths)
    return environ


def daemon_site() -> Path:
    """The package that daemons run, in a folder to put on the path."""
    return ROOT if _compiled is None else Path(_compiled.name)


# Cores that don't sleep.

_awake = False


@contextlib.contextmanager
def awake() -> Iterator[None]:
    """Keep the cores from sleeping while the block runs, where we may (the kernel's PM QoS, as root).

    Who sends to a core that sleeps has to wake it, and in a virtual machine both go through the hypervisor, which
    takes its time, each time another. Five runs end to end: 11,700 to 23,100/s with 27 % of a core stolen; awake
    19,600 to 21,800/s with 1 %. wrk fills both cores, so that neither sleeps under it anyway.
    """
    global _awake  # noqa: PLW0603 - a state of the machine
    try:
        device = os.open("/dev/cpu_dma_latency", os.O_WRONLY)
    except OSError:
        yield  # the page says so
        return
    try:
        os.write(
            device, struct.pack("i", 0)
        )  # microseconds within which a core must be awake; until it is closed
        _awake = True
        yield
    finally:
        _awake = False
        os.close(device)


# The machine, and who else was using it.


def machine() -> str:
    """One line about what the figures were measured on."""
    text = Path("/proc/cpuinfo").read_text()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    cpu = found[1].strip() if found else platform.machine()
    virtual = ", virtual" if re.search(r"^flags\s*:.*\bhypervisor\b", text, re.MULTILINE) else ""
    return (
        f"{cpu} ({os.cpu_count()} cores{virtual}), Linux {platform.release().partition('-')[0]}, "
        f"Python {_python[1]}, uvloop {version('uvloop')}, httptools {version('httptools')}"
    )


class Disturbance:
    """How much of the machine went elsewhere since this was made, in shares of one core.

    Other processes: all that this one didn't start, but for the kernel's own threads, which work for
    everybody. Stolen: what the hypervisor gave to other guests.
    """

    LIMIT: Final = 0.05

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._others, self._stolen = _elsewhere()

    def read(self) -> tuple[float, float]:
        """(other processes, stolen) by now."""
        seconds = max(time.monotonic() - self._began, 1e-9)
        others, stolen = _elsewhere()
        return max(others - self._others, 0.0) / seconds, max(stolen - self._stolen, 0.0) / seconds


def _elsewhere() -> tuple[float, float]:
    """CPU seconds since boot of everybody but us and the kernel, and those stolen by the hypervisor.

    The difference of the whole and of ours also holds what processes took that are gone by now.
    """
    whole = [int(ticks) / _TICKS for ticks in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    user, nice, system, *_, stolen = whole
    parents: dict[int, int] = {}
    seconds: dict[int, float] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError, IndexError, ValueError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            pid = int(entry.name)
            parents[pid] = int(fields[1])
            # With the children that have ended and been waited for.
            seconds[pid] = sum(map(int, fields[11:15])) / _TICKS

    def counts(pid: int) -> bool:
        while pid > 0:
            if pid in (own, 2):  # the kernel's threads descend from 2
                return True
            pid = parents.get(pid, 0)
        return False

    own = os.getpid()
    return user + nice + system - sum(taken for pid, taken in seconds.items() if counts(pid)), stolen


def wait_for_calm(patience: float) -> None:
    """Return once other processes leave the machine alone, at the latest after so many seconds."""
    deadline = time.monotonic() + patience
    while True:
        disturbance = Disturbance()
        time.sleep(0.5)
        if disturbance.read()[0] < Disturbance.LIMIT or time.monotonic() > deadline:
            return


# The endpoint.

_NGINX: Final = """\
daemon off;
master_process on;
worker_processes {workers};
worker_rlimit_nofile {files};
user {user};
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
events {{ worker_connections {connections}; multi_accept on; }}
http {{
    log_format id '$msec $http_webhook_id';
    access_log {access_log};
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    keepalive_requests 1000000000;
    keepalive_timeout 600s;
    keepalive_time 24h;
    client_body_buffer_size 64k;
    client_max_body_size 64m;
    tcp_nodelay on;
    server_tokens off;
    ssl_certificate {folder}/server.pem;
    ssl_certificate_key {folder}/server.key;
    ssl_protocols TLSv1.2 TLSv1.3;
    server {{
{listen}
        location / {{ return 200; }}
    }}
}}
"""


class Nginx:
    """nginx with one worker (more for very many addresses) on a core of its own, answering every request with an empty 200.

    `addresses` are the loopback addresses it listens on (127.0.0.1 alone unless told), each on `port` and,
    with TLS, on `tls_port` (the first 2,000 of them). With `count`, the `webhook-id` of every request is kept, and when
    it was answered: `received()` and `arrivals()` give them after the end. It costs nginx a few per cent, so what is
    counted isn't timed, or goes at a given pace.
    """

    def __init__(
        self, addresses: Sequence[str] = ("127.0.0.1",), *, core: int | None = None, count: bool = False
    ) -> None:
        require("nginx", "taskset")
        self._core = CORES.server if core is None else core
        self._addresses = addresses
        self._count = count
        self._folder = tempfile.TemporaryDirectory(prefix="bench-nginx-")
        self.folder = Path(self._folder.name)
        self.port = free_port()
        self.tls_port = free_port()
        self.ca_file = self.folder / "ca.pem"
        self._log = self.folder / "ids.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://{self._addresses[0]}:{self.port}/hook"

    @property
    def tls_url(self) -> str:
        return f"https://{self._addresses[0]}:{self.tls_port}/hook"

    def __enter__(self) -> Self:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(self.ca_file))
        certificate = authority.issue_cert("localhost", *self._addresses[:100])
        for part in certificate.cert_chain_pems:
            part.write_to_path(str(self.folder / "server.pem"), append=True)
        certificate.private_key_pem.write_to_path(str(self.folder / "server.key"))
        (self.folder / "server.key").chmod(0o600)
        # It starts as whoever started it: root may not hand the temporary folder to somebody else.
        listen = "\n".join(
            [
                *(f"        listen {address}:{self.port} backlog=4096;" for address in self._addresses),
                *(
                    f"        listen {address}:{self.tls_port} ssl backlog=4096;"
                    for address in self._addresses[:2000]
                ),
            ]
        )
        config = self.folder / "nginx.conf"
        config.write_text(
            _NGINX.format(
                folder=self.folder,
                # A worker has a descriptor for each address beside those of its connections.
                workers=1 + len(self._addresses) // 5000,
                user="root" if os.geteuid() == 0 else "nobody",
                listen=listen,
                files=max(4 * len(self._addresses), 16384),
                connections=max(3 * len(self._addresses), 0) + 16384,
                access_log=f"{self._log} id buffer=1m" if self._count else "off",
            )
        )
        program = shutil.which("nginx") or "/usr/sbin/nginx"
        self._process = subprocess.Popen(
            pinned(
                self._core,
                [program, "-p", str(self.folder), "-e", str(self.folder / "error.log"), "-c", str(config)],
            ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_for(self._answers, 60.0, "nginx listens")
        except BaseException:
            self.stop()
            raise
        return self

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            log = self.folder / "error.log"
            raise CannotRun(f"nginx ended: {log.read_text().strip() if log.exists() else 'it said nothing'}")
        first = self._addresses[0]
        return accepts(self.port, first) and accepts(self.tls_port, first)

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._folder.cleanup()

    def stop(self) -> None:
        """End it; what it has counted is complete then."""
        if self._process is not None:
            end(self._process, signal.SIGTERM, 10.0)
            self._process = None

    def received(self) -> list[str]:
        """The `webhook-id` of every request since the start, in order. Ends nginx, which holds a part back."""
        return [event_id for event_id, _ in self.arrivals()]

    def arrivals(self) -> list[tuple[str, float]]:
        """The same, each with when it was answered: Unix seconds, to the millisecond."""
        self.stop()
        lines = (line.split() for line in self._log.read_text().splitlines())
        return [(event_id, float(at)) for at, event_id in lines]


# The yardstick.

_WRK: Final = """\
wrk.method = "POST"
wrk.body = string.rep("x", {size})
wrk.headers["User-Agent"] = "dispatcher/0.0.0"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["webhook-id"] = "evt_00000000"
wrk.headers["webhook-timestamp"] = "1700000000"
wrk.headers["webhook-signature"] = "v1,K5oZfzN95Z9UVu1EsfQmfVNQhnkZ2pj9o9NDN/H/pI4="
"""


@dataclass(frozen=True)
class Driven:
    """What wrk reached."""

    rate: float  # requests a second
    requests: int
    errors: int
    cpu: float = 0.0  # seconds of its own per request


def wrk(
    url: str,
    *,
    seconds: float = 5,
    connections: int = CONNECTIONS,
    size: int = BODY_BYTES,
    core: int | None = None,
) -> Driven:
    """Drive `url` with wrk from the client core: one thread, POSTs of `size` bytes with the headers of a delivery.

    The request is built once, before the run: wrk signs nothing. It is the limit, not a competitor.
    """
    require("wrk", "taskset")
    with tempfile.TemporaryDirectory(prefix="bench-wrk-") as folder:
        script = Path(folder, "post.lua")
        script.write_text(_WRK.format(size=size))
        before = resource.getrusage(resource.RUSAGE_CHILDREN)  # grows by those that were waited for
        ran = subprocess.run(
            pinned(
                CORES.client if core is None else core,
                ["wrk", "-t1", f"-c{connections}", f"-d{max(round(seconds), 1)}s", "-s", str(script), url],
            ),
            capture_output=True,
            text=True,
            timeout=seconds + 60,
            check=False,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    rate = re.search(r"^Requests/sec:\s+([\d.]+)", ran.stdout, re.MULTILINE)
    count = re.search(r"^\s*(\d+) requests in ", ran.stdout, re.MULTILINE)
    if ran.returncode or rate is None or count is None:
        raise CannotRun(f"wrk failed: {(ran.stderr or ran.stdout).strip()}")
    wrong = re.findall(r"Non-2xx or 3xx responses: (\d+)", ran.stdout)
    sockets = re.findall(r"(?:connect|read|write|timeout) (\d+)", ran.stdout)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    requests = int(count[1])
    return Driven(float(rate[1]), requests, sum(map(int, [*wrong, *sockets])), cpu / max(requests, 1))


class Pair(NamedTuple):
    """One measurement, and the mean of wrk's rates just before and just after it."""

    measured: float
    wrk: float

    @property
    def ratio(self) -> float:
        return self.measured / self.wrk


@dataclass
class Compared(Generic[T]):
    """Measurements beside wrk. `seen` is what each measurement saw besides its rate."""

    pairs: list[Pair]
    seen: list[T]
    disturbed: int  # of them, those during which other processes took more than `Disturbance.LIMIT`
    set_aside: int  # disturbed ones that were repeated and aren't among them

    @property
    def rates(self) -> list[float]:
        return [pair.measured for pair in self.pairs]

    @property
    def wrk(self) -> list[float]:
        return [pair.wrk for pair in self.pairs]

    @property
    def ratios(self) -> list[float]:
        return [pair.ratio for pair in self.pairs]

    def remark(self) -> str:
        """What to say of the disturbed ones; empty when there were none."""
        said = []
        if self.set_aside:
            said.append(f"{self.set_aside} runs were repeated because other processes disturbed them.")
        if self.disturbed:
            said.append(f"Other processes disturbed {self.disturbed} of {len(self.pairs)} runs.")
        return " ".join(said)


def beside_wrk(
    measure: Callable[[], tuple[float, T]],
    yardstick: Callable[[], float],
    runs: int,
    *,
    spare: int | None = None,
    patience: float = 10.0,
) -> Compared[T]:
    """Measure `runs` times in turns with wrk. `measure` gives a rate and whatever else it saw.

    Each rate is compared with the mean of wrk's before and after it, so that a machine that drifts
    drifts for both. Runs that other processes disturbed are repeated, up to `spare` times altogether
    (half as often as there are runs, unless told); the choice never looks at the rates. Before each
    run other processes get `patience` seconds to be done.
    """
    taken: list[tuple[float, Pair, T]] = []  # with its disturbance
    spare = (runs + 1) // 2 if spare is None else spare

    def drive() -> tuple[float, float]:
        wait_for_calm(patience)
        disturbance = Disturbance()
        return yardstick(), disturbance.read()[0]

    def calm() -> int:
        return sum(others <= Disturbance.LIMIT for others, _, _ in taken)

    before, before_others = drive()
    while len(taken) < runs or (calm() < runs and len(taken) < runs + spare):
        wait_for_calm(patience)
        disturbance = Disturbance()
        rate, other = measure()
        others = disturbance.read()[0]
        after, after_others = drive()
        taken.append((max(others, before_others, after_others), Pair(rate, (before + after) / 2), other))
        before, before_others = after, after_others
    kept = sorted(sorted(range(len(taken)), key=lambda number: taken[number][0])[:runs])
    return Compared(
        [taken[number][1] for number in kept],
        [taken[number][2] for number in kept],
        disturbed=sum(taken[number][0] > Disturbance.LIMIT for number in kept),
        set_aside=len(taken) - runs,
    )


# What is delivered.


def envelope(
    number: int, size: int = 1024, kind: str = "orders.item.created", tenant: str = "tenant-0"
) -> tuple[str, bytes]:
    """An id, and an event of exactly `size` bytes in the JSON envelope, of the usual mix of fields."""
    event_id = f"evt_{number:010d}"
    rng = random.Random(number)
    data: dict[str, object] = {
        "order": f"ord_{rng.randrange(10**9):09d}",
        "customer": {"name": "Ada Lovelace", "email": "ada@example.com", "country": "GB"},
        "lines": [{"sku": f"SKU-{rng.randrange(10**5):05d}", "quantity": 1, "price": 19.5} for _ in range(6)],
        "total": 117.0,
        "paid": True,
        "note": "",
    }
    document = {"id": event_id, "type": kind, "created": NOW, "tenant": tenant, "data": data}
    missing = size - len(orjson.dumps(document))
    if missing < 0:
        raise ValueError(f"an event of this shape has at least {size - missing} bytes")
    data["note"] = "x" * missing
    return event_id, orjson.dumps(document)


# Timing small things.


def per_call(
    call: Callable[[int], object], *, loops: int = 0, repeats: int = 11, budget: float = 0.05
) -> float:
    """Seconds of CPU for one of the `n` things that `call(n)` does: the median of several runs.

    CPU time of this thread, so that whoever else wants the core doesn't count (but for the caches it leaves cold).

    `loops` of 0 finds a count that takes about `budget` seconds a run. The first run is thrown away.
    """
    if not loops:
        loops = 1
        while True:
            begin = time.thread_time()
            call(loops)
            taken = time.thread_time() - begin
            if taken >= budget / 4:
                loops = max(1, round(loops * budget / taken))
                break
            loops *= 4
    call(loops)
    times = []
    gc.collect()
    gc.disable()  # as timeit does: a collection's time belongs to no single call
    try:
        for _ in range(repeats):
            begin = time.thread_time()
            call(loops)
            times.append((time.thread_time() - begin) / loops)
    finally:
        gc.enable()
    return statistics.median(times)


# What comes out.


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def spread(values: Sequence[float], show: Callable[[float], str] = lambda value: f"{value:,.0f}") -> str:
    """`12,345 (11,900-12,800)`: the median, and the lowest and highest where there are several."""
    middle = show(median(values))
    return middle if len(values) < 2 else f"{middle} ({show(min(values))}-{show(max(values))})"


def one_digit(value: float) -> str:
    return f"{value:.1f}"


def two_digits(value: float) -> str:
    return f"{value:.2f}"


def mib(size: float) -> str:
    return f"{size / (1 << 20):,.0f} MiB"


def micros(seconds: float) -> str:
    """Microseconds, with three digits that mean something."""
    value = seconds * 1e6
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 2 - max(0, math.floor(math.log10(value)) if value > 0 else 0))}f}"


@dataclass
class Table:
    """Rows under a header; the first column is text, the others numbers."""

    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)

    def add(self, *cells: str) -> None:
        self.rows.append(cells)

    def markdown(self) -> str:
        align = ["---", *["---:"] * (len(self.columns) - 1)]
        lines = [self.columns, align, *self.rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)

    def text(self) -> str:
        lines = [list(map(_plain, line)) for line in (self.columns, *self.rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        return "\n".join(
            "  ".join(
                [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]
            )
            for line in lines
        )


def _plain(cell: str) -> str:
    return re.sub(r"```\w*\n?|[`*]", "", cell)


@dataclass
class Section:
    """One benchmark's part of RESULTS.md."""

    title: str
    command: str
    parts: list[str | Table] = field(default_factory=list)
    _disturbance: Disturbance = field(default_factory=Disturbance)

    def add(self, part: str | Table) -> None:
        self.parts.append(part)

    def _foot(self) -> str:
        others, stolen = self._disturbance.read()
        return (
            f"{dt.datetime.now(tz=dt.UTC).date().isoformat()}, `{self.command}`. {machine()}. "
            f"{'' if _compiled is None else 'The daemon is compiled, as in the container image. '}"
            f"The cores were {'kept from sleeping' if _awake else 'left to sleep'}. "
            f"From begin to end other processes took {others:.0%} of one core, the hypervisor {stolen:.0%}."
        )

    def report(self, results: Path | None) -> None:
        """Print it, and put it into `results` in place of its older self (None: only print)."""
        foot = self._foot()
        plain = [part.text() if isinstance(part, Table) else _plain(part) for part in self.parts]
        print(
            "",
            self.title,
            "=" * len(self.title),
            "",
            *[f"{part}\n" for part in plain],
            _plain(foot),
            sep="\n",
        )
        if results is not None:
            parts = [part.markdown() if isinstance(part, Table) else part for part in self.parts]
            _replace(results, self.title, "\n\n".join([*parts, f"<sub>{foot}</sub>"]))


# The order of the page, whatever is run first.
TITLES: Final = (
    "End to end",
    "End to end, TLS",
    "End to end, embedded broker",
    "Fan-out",
    "Latency",
    "Growth",
    "Replicas",
    "Workers",
    "Isolation",
    "Tenants",
    "Tracing",
    "Memory",
    "Soak",
    "Transport",
    "Micro-benchmarks",
    "Matching",
    "Control plane",
    "Pending retries",
    "History: the delivering process",
    "History: in one process",
    "History: indexing",
    "History: questions to PostgreSQL",
    "History: questions to SQLite",
    "History: replays",
    "Pages",
)

_HEAD: Final = """\
# Results

Made by `make bench` (`python -m benchmarks`); each section replaces its older self. Rates depend on the
machine: the ratio to wrk, measured in turns with it on the same cores, is what to compare. What is measured
has one core to itself; nginx, and Kafka where there is one, share the other. Where that is allowed the cores are kept from
sleeping: waking one takes a virtual machine longer than what it is woken for, each time another time. `--python` runs
the daemon by an interpreter that is built as the image's is (optimized by a profile), which pyenv's are not.
"""


def _replace(results: Path, title: str, body: str) -> None:
    sections: dict[str, str] = {}
    if results.exists():
        for piece in re.split(r"^(?=## )", results.read_text(), flags=re.MULTILINE)[1:]:
            name, _, rest = piece.partition("\n")
            sections[name.removeprefix("## ").strip()] = rest.strip()
    sections[title] = body.strip()
    known = {name: place for place, name in enumerate(TITLES)}
    ordered = sorted(sections, key=lambda name: (known.get(name, len(known)), name))
    results.write_text(
        _HEAD + "".join(f"\n## {name}\n\n{sections[name]}\n" for name in ordered), encoding="utf-8"
    )


@contextlib.contextmanager
def process(
    command: Sequence[str], *, log: Path, cwd: Path, environ: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command beside the benchmark; it is ended with SIGTERM, at the latest after 30 seconds by force."""
    with log.open("ab") as output:
        child = subprocess.Popen(
            command, cwd=cwd, env=environ, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        yield child
    finally:
        end(child)
