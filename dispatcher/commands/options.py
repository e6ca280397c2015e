"""Options that several commands share, and the settings that they make."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from dispatcher.core.text.redact import name_of
from dispatcher.settings.groups import Settings
from dispatcher.settings.load import Flag, SettingsError, load

F = TypeVar("F", bound=Callable[..., Any])

_DEFAULT_FILE = Path("config/dispatcher.yaml")


def settings_options(command: F) -> F:
    """Add `--config`, `--broker`, `--group` and `--set`; the command gets `config` and `overrides`."""

    @click.option(
        "-c",
        "--config",
        type=click.Path(path_type=Path),
        envvar="DISPATCHER_CONFIG",
        help=f"Settings file [default: {_DEFAULT_FILE}, if it is there].",
    )
    @click.option("--broker", help="Broker URL: kafka://host:9092[,...] or sqlite:///path.")
    @click.option("--group", help="Consumer group.")
    @click.option(
        "--set",
        "assignments",
        multiple=True,
        metavar="KEY=VALUE",
        help="Any other setting: --set log.level=debug.",
    )
    @wraps(command)
    def wrapped(
        *args: Any, broker: str | None, group: str | None, assignments: tuple[str, ...], **kwargs: Any
    ) -> Any:
        overrides: dict[str, Any] = {}
        for assignment in assignments:
            key, equals, value = assignment.partition("=")
            if not equals or not key:
                raise click.BadParameter(f"{name_of(assignment)} is not KEY=VALUE", param_hint="--set")
            overrides[key] = Flag("--set", value)
        overrides |= flags(broker=("--broker", broker), group=("--group", group))
        return command(*args, overrides=overrides, **kwargs)

    return wrapped  # type: ignore[return-value] # wraps() forgets that the command is called with fewer options


def flags(**options: tuple[str, Any]) -> dict[str, Any]:
    """Settings by flags of their own (`__` for the dot), without those that weren't given: they must not take the place of
    what `--set` says.
    """
    return {
        name.replace("__", "."): Flag(option, value)
        for name, (option, value) in options.items()
        if value is not None
    }


def load_settings(config: Path | None, flags: Mapping[str, Any]) -> Settings:
    """The settings of file, environment and flags; ends the process with 2, listing every error."""
    if config is None and _DEFAULT_FILE.exists():
        config = _DEFAULT_FILE
    try:
        return load(config, os.environ, flags)
    except SettingsError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(2)
