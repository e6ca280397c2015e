"""The commands. Exit codes: 0 done, 1 it failed while running, 2 a wrong command line or configuration."""

from __future__ import annotations

from typing import Final

import click

from dispatcher.__about__ import __version__
from dispatcher.commands.group import Commands, LazyCommands

# A command's module is imported when the command is used: one that asks the API needs no broker, no engine and no server.
_COMMANDS: Final = {
    "backup": "dispatcher.commands.backup:backup",
    "check-config": "dispatcher.commands.check_config:check_config",
    "cluster": "dispatcher.commands.cluster:cluster",
    "dead-letters": "dispatcher.commands.dead_letters:dead_letters",
    "deliveries": "dispatcher.commands.deliveries:deliveries",
    "demo": "dispatcher.commands.demo:demo",
    "event-types": "dispatcher.commands.event_types:event_types",
    "events": "dispatcher.commands.events:events",
    "failing": "dispatcher.commands.cluster:failing",
    "history": "dispatcher.commands.history:history",
    "issues": "dispatcher.commands.issues:issues",
    "keys": "dispatcher.commands.keys:keys",
    "listen": "dispatcher.commands.listen:listen",
    "publish": "dispatcher.commands.publish:publish",
    "replays": "dispatcher.commands.replays:replays",
    "restore": "dispatcher.commands.backup:restore",
    "run": "dispatcher.commands.run:run",
    "subscriptions": "dispatcher.commands.subscriptions:subscriptions",
    "tenants": "dispatcher.commands.tenants:tenants",
    "topics": "dispatcher.commands.topics:topics",
}


@click.group(
    cls=Commands,
    commands=LazyCommands(_COMMANDS),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="dispatcher")
def main() -> None:
    """Deliver webhooks from Kafka: signed, isolated per host, retried for days, and observable."""
