"""The command group, with a broken command line told in one line instead of click's four."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from click.exceptions import NoArgsIsHelpError


class ConfigError(click.ClickException):
    """What was asked for can't be right; nothing was started."""

    exit_code = 2


class Commands(click.Group):
    """A group whose usage errors are one line that says what to do."""

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
