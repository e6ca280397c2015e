"""The command group: a wrong command line is told in one line instead of click's four, and a command is imported when it is used."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import click
from click.exceptions import NoArgsIsHelpError


class ConfigError(click.ClickException):
    """The arguments or settings can't be right; nothing was started."""

    exit_code = 2


class Commands(click.Group):
    """A group whose usage errors are one line that says what to do."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """The command line. What standard output can't encode is escaped, as Python does it for standard error."""
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")
        return super().main(*args, **kwargs)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with _one_line():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        with _one_line():
            return super().invoke(ctx)


class LazyCommands(MutableMapping[str, click.Command]):
    """Commands by name, each imported when it is asked for."""

    def __init__(self, places: Mapping[str, str]) -> None:
        """`places`: of each name, `module:attribute`."""
        self._places: dict[str, str | click.Command] = dict(places)

    def __getitem__(self, name: str) -> click.Command:
        found = self._places[name]
        if isinstance(found, str):
            module, _, attribute = found.partition(":")
            found = self._places[name] = getattr(import_module(module), attribute)
        return found

    def __setitem__(self, name: str, command: click.Command) -> None:
        self._places[name] = command

    def __delitem__(self, name: str) -> None:
        del self._places[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


@contextmanager
def _one_line() -> Iterator[None]:
    try:
        yield
    except NoArgsIsHelpError:
        raise
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx is not None else "dispatcher"
        message = " ".join(error.format_message().split()).rstrip(".")
        raise ConfigError(f"{message} (see {command} --help)") from error
    except UnicodeError as error:
        # Bytes of the command line or the environment that Python has escaped (PEP 383).
        said = f"{error.object!a} is not UTF-8" if isinstance(error, UnicodeEncodeError) else str(error)
        raise ConfigError(said) from error
