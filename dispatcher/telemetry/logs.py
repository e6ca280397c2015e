"""Logs: one JSON object a line for machines, readable lines for a terminal.

structlog renders everything, the standard library's loggers (aiokafka, aiohttp) included, so
that a line never comes in another shape.
"""

from __future__ import annotations

import io
import json
import logging
import sys
from typing import Any

import orjson
import structlog
from structlog.typing import EventDict, Processor

from dispatcher.settings.groups import LogSettings


def readable(settings: LogSettings) -> bool:
    """Whether people read the log, and not machines."""
    return settings.format == "console" or (settings.format == "auto" and sys.stderr.isatty())


def configure(settings: LogSettings) -> None:
    """Send logs to standard error, as `log.level` and `log.format` say."""
    console = readable(settings)
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if not console and isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(
            encoding="utf-8"
        )  # JSON is; an escape of another encoding would be none of JSON's
    renderers: list[Processor]
    if console:
        renderers = [
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            )
        ]
    else:
        renderers = [
            # Never a frame's locals: they hold secrets, headers and bodies.
            structlog.processors.ExceptionRenderer(
                structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
            ),
            structlog.processors.EventRenamer("message"),
            structlog.processors.JSONRenderer(serializer=_dumps),
        ]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.level.upper())
    # Its INFO lines tell of every fetch and group step; our own lines say what an operator needs.
    logging.getLogger("aiokafka").setLevel(logging.WARNING)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.PositionalArgumentsFormatter(),
            *([] if console else [structlog.processors.StackInfoRenderer()]),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def _dumps(event: EventDict, **_: Any) -> str:
    try:
        return orjson.dumps(event, default=repr, option=orjson.OPT_NON_STR_KEYS).decode()
    except TypeError:
        # A lone surrogate, or a number beyond 64 bits: orjson asks nobody about these.
        return json.dumps(event, default=repr)
