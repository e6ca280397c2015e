"""`dispatcher run --workers N`: the supervisor as a process, with its signals and its own service manager."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click
import structlog
import uvloop

from dispatcher.commands.group import ConfigError
from dispatcher.commands.signals import handle_signals
from dispatcher.runtime.service_manager import READY, STOPPING, ServiceManager
from dispatcher.runtime.tasks import Tasks
from dispatcher.settings.broker_url import KafkaServers
from dispatcher.settings.groups import Settings
from dispatcher.workers.place import WorkerPlace
from dispatcher.workers.supervisor import CannotBind, Supervisor

log = structlog.get_logger(__name__)


def place_of(context: click.Context, option: click.Parameter, text: str | None) -> WorkerPlace | None:
    """Read what the supervisor puts on a worker's command line."""
    if text is None:
        return None
    try:
        return WorkerPlace.read(text)
    except ValueError as error:
        raise click.BadParameter("is for the workers that --workers starts", context, option) from error


def supervise(settings: Settings, workers: int, arguments: Sequence[str]) -> int:
    """Run so many workers until SIGTERM; `arguments` is the command line that each gets, too. The exit code."""
    if not isinstance(settings.broker_address, KafkaServers):
        raise ConfigError(
            "--workers needs Kafka: the embedded broker serves a single process (setting broker, DISPATCHER_BROKER)"
        )
    if "deliver" not in settings.roles:
        raise ConfigError(
            "--workers is for deliveries: roles must contain deliver (--roles, DISPATCHER_ROLES)"
        )
    return uvloop.run(_supervise(settings, workers, arguments))


async def _supervise(settings: Settings, workers: int, arguments: Sequence[str]) -> int:
    manager = ServiceManager.of(os.environ)

    def command(place: WorkerPlace) -> Sequence[str]:
        return [sys.executable, "-m", "dispatcher", *arguments, "--worker", str(place)]

    http = settings.http
    try:
        supervisor = Supervisor(
            command,
            os.environ,
            workers=workers,
            host=http.host,
            port=http.port,
            drain=settings.shutdown.drain,
        )
    except CannotBind as error:
        raise ConfigError(str(error)) from error
    log.info("starting workers", workers=workers, port=supervisor.port)
    tasks = Tasks()
    tasks.start(_announce(supervisor, manager), "tell of the start")
    tasks.start(manager.beat(supervisor.problems), "beat")

    def stop() -> None:
        manager.tell(STOPPING)
        supervisor.stop()

    handle_signals(stop=stop, stop_at_once=lambda _: supervisor.kill(), reload=supervisor.reload)
    code = await supervisor.run()
    await tasks.stop()
    manager.close()
    log.info("all workers ended", code=code)
    return code


async def _announce(supervisor: Supervisor, manager: ServiceManager) -> None:
    await supervisor.started()
    manager.tell(READY)
