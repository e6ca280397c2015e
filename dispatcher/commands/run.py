"""`dispatcher run`: the dispatcher as a process, or several of them under a supervisor."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any, Final, NoReturn

import click
import structlog
import uvloop

from dispatcher.api.server import CannotListen
from dispatcher.app import App
from dispatcher.broker.base import BrokerError
from dispatcher.commands.options import flags, load_settings, settings_options
from dispatcher.commands.signals import handle_signals
from dispatcher.commands.workers import place_of, supervise
from dispatcher.registry.file import SubscriptionsError
from dispatcher.runtime.service_manager import READY, STOPPING, ServiceManager
from dispatcher.runtime.tasks import Tasks
from dispatcher.settings.groups import Settings
from dispatcher.telemetry.logs import configure, readable
from dispatcher.workers.place import WorkerPlace
from dispatcher.workers.supervisor import WATCHDOG_SECONDS

log = structlog.get_logger(__name__)

_M_TRIM_THRESHOLD: Final = -1  # malloc.h
_M_MMAP_THRESHOLD: Final = -3
_KEPT_BYTES: Final = 32 << 20


@click.command(short_help="Run the dispatcher.")
@settings_options
@click.option(
    "--roles", help="What this process does: deliver, api, history, separated by commas [default: all]."
)
@click.option("--http-host", help="Address of the API, health and metrics.")
@click.option("--http-port", type=int, help="Port of the API, health and metrics.")
@click.option(
    "--subscriptions", "subscriptions_file", type=click.Path(path_type=Path), help="Subscriptions file."
)
@click.option(
    "--workers",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    help="Processes of the group on this machine, one for each core that deliveries may use. Needs Kafka.",
)
@click.option("--worker", "place", callback=place_of, hidden=True)
def run(
    config: Path | None,
    overrides: dict[str, Any],
    roles: str | None,
    http_host: str | None,
    http_port: int | None,
    subscriptions_file: Path | None,
    workers: int,
    place: WorkerPlace | None,
) -> None:
    """Run the dispatcher until SIGTERM or Ctrl-C; a second one exits at once. SIGHUP reads the
    subscriptions file again.
    """
    own = flags(
        roles=("--roles", roles),
        http__host=("--http-host", http_host),
        http__port=("--http-port", http_port),
        subscriptions_file=("--subscriptions", subscriptions_file),
    )
    if place is not None and place.number > 1:
        own |= flags(roles=("--worker", "deliver"))  # the first one does what else there is to do
    settings = load_settings(config, {**overrides, **own})
    configure(settings.log)
    _allow_many_sockets()
    if workers > 1 and place is None:
        sys.exit(supervise(settings, workers, sys.argv[1:]))
    _keep_freed_memory()
    sys.exit(uvloop.run(_run(settings, place)))


def _allow_many_sockets() -> None:
    """Each connection is a file descriptor, and the usual soft limit is 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # some systems allow less than they say
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _keep_freed_memory() -> None:
    """What glibc has got from the kernel it shall keep: fetches of some MiB come and go all the time.

    Left to itself it gives the end of its heap back, as it happens with each fetch or hardly ever: then every
    page of it, a third of one for each delivery, is cleared and mapped anew: 16.2 us a delivery instead of 15.1.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library has no such thing
        mallopt = ctypes.CDLL(None).mallopt
        for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
            mallopt(option, _KEPT_BYTES)


async def _run(settings: Settings, place: WorkerPlace | None) -> int:
    try:
        app = App(settings, os.environ, place)
    except (ValueError, OSError) as error:
        return _refuse(error, settings)
    reloads, beat = Tasks(), Tasks()
    handle_signals(
        stop=app.request_stop,
        stop_at_once=_exit_at_once,
        reload=lambda: reloads.start(app.reload(), "reload"),
    )
    if place is None:
        manager = ServiceManager.of(os.environ)
    else:
        manager = ServiceManager(place.open_link(), WATCHDOG_SECONDS)
        manager.when_gone(app.request_stop)
    beat.start(manager.beat(app.problems), "beat")
    try:
        await app.start()
    except (SubscriptionsError, CannotListen) as error:
        code = _refuse(error, settings)
    else:
        manager.tell(READY)
        await app.wait()
        code = 0
    manager.tell(STOPPING)
    if isinstance(app.failure, BrokerError):
        code = _refuse(app.failure, settings)
        if app.started:
            code = 1
    elif app.failure is not None:
        code = 1  # the log has it, with its traceback
    await app.stop()
    await beat.stop()
    manager.close()
    return code


def _refuse(error: Exception, settings: Settings) -> int:
    """Say once why it can't go on: in words for people, and as one of the log's lines where machines read them."""
    if readable(settings.log):
        click.echo(f"Error: {error}", err=True)
    else:
        log.critical("can't go on", error=str(error))
    return 2


def _exit_at_once(number: signal.Signals) -> NoReturn:
    # What is not committed is delivered again by the next process: nothing is lost by leaving now.
    os._exit(128 + number)
