"""The command group: a wrong command line is told in one line instead of click's four."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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
