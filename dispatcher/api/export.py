"""Lists as NDJSON or CSV, for whoever asks for that by `Accept`: all pages in one answer, as far as `MOST` rows.

What a page of JSON says beside its rows stands in headers: `X-Next-Cursor` where there is more, `X-As-Of` and `X-Gaps`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import orjson

from dispatcher.api.loop_budget import Meter
from dispatcher.api.route import CSV, NDJSON, Call, Reply, Route

MOST: Final = 10_000
"""Rows of an answer, at the most; and a page more."""

_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")


def wanted(route: Route, accept: Sequence[str]) -> str | None:
    """The media type that a request asks for instead of JSON: of those with the greatest weight, where that isn't JSON's."""
    if route.exports is None:
        return None
    weights = {NDJSON: 0.0, CSV: 0.0}
    others = 0.0
    for part in ",".join(accept).split(","):
        media, *parameters = (each.strip().lower() for each in part.split(";"))
        weight = next((_weight(each[2:]) for each in parameters if each.startswith("q=")), 1.0)
        if media in weights:
            weights[media] = max(weights[media], weight)
        elif media in {"application/json", "application/*", "*/*"}:
            others = max(others, weight)
    best = max(weights, key=lambda media: weights[media])
    return best if weights[best] > others else None


async def exported(route: Route, call: Call, media: str, meter: Meter) -> Reply:
    """The rows of all pages from the one that was asked for on."""
    rows: list[Mapping[str, Any]] = []
    headers: dict[str, str] = {}
    while True:
        page = await route.handler(call)
        body: Any = page.body
        rows += [each.model_dump(mode="json", by_alias=True) for each in getattr(body, route.exports or "")]
        if not headers and hasattr(body, "as_of"):
            headers = {"X-As-Of": body.as_of or "", "X-Gaps": str(len(body.gaps))}
        if body.next_cursor is None:
            break
        if len(rows) >= MOST:
            headers["X-Next-Cursor"] = body.next_cursor
            break
        call.query = call.query.model_copy(update={"cursor": body.next_cursor})
    # Ten thousand rows take some tenths of a second.
    written = await meter.beside(partial(ndjson if media == NDJSON else comma_separated, rows))
    return Reply(written, headers=headers, content_type=media if media == NDJSON else f"{CSV}; charset=utf-8")


def ndjson(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """A row a line."""
    return b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows)


def comma_separated(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """A row a line below the names of the columns (RFC 4180). Members of objects are columns of their own, lists are JSON.

    A text that a spreadsheet would take for a formula has an apostrophe before it: others have chosen it.
    """
    flat = [dict(_flat(row)) for row in rows]
    columns = list(dict.fromkeys(name for row in flat for name in row))
    written = io.StringIO()
    writer = csv.writer(written)
    writer.writerow(columns)
    writer.writerows([_cell(row.get(name)) for name in columns] for row in flat)
    return written.getvalue().encode()


def _flat(row: Mapping[str, Any], before: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in row.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield before + name, value


def _cell(value: Any) -> Any:
    if isinstance(value, list):
        value = orjson.dumps(value).decode()
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"
    return value


def _weight(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
