"""Tables and fields that the API's commands print for people."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dispatcher.commands.client import shown

_STYLES = {
    "active": "green",
    "paused": "yellow",
    "pending": "cyan",
    "disabled": "red",
    "closed": "green",
    "open": "red",
    "half-open": "yellow",
    "delivered": "green",
    "retrying": "yellow",
}


def console() -> Console:
    """For standard output; a pipe has no width, and nothing must be folded for one."""
    made = Console(highlight=False, emoji=False, markup=False)
    if not made.is_terminal:
        made.width = 10_000
    return made


def cell(value: Any) -> Text:
    """A value as it stands in a table."""
    if value is None or value in ([], {}, ""):
        return Text("-", style="dim")
    if isinstance(value, bool):
        return Text("yes" if value else "no")
    if isinstance(value, list):
        return Text(shown(", ".join(map(str, value))))
    return Text(shown(str(value)), style=_STYLES.get(str(value), ""))


def print_rows(
    columns: Sequence[str], rows: Iterable[Sequence[Any]], *, folded: str | Collection[str] = ""
) -> None:
    """A table; where it is too wide, the columns `folded` are folded first, and only then are others cut."""
    foldable = {folded} if isinstance(folded, str) else folded
    found = list(rows)
    target = console()
    table = Table(box=box.SIMPLE_HEAD if target.is_terminal else None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=not target.is_terminal or column not in foldable)
    for row in found:
        table.add_row(*map(cell, row))
    target.print(table)


def print_fields(fields: Mapping[str, Any]) -> None:
    """Names and values, one a line."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in fields.items():
        table.add_row(name, value if isinstance(value, Text) else cell(value))
    console().print(table)
