"""The API, as the commands call it: one request at a time, errors as one line that says what to do.

A key is sent to the address that was named and nowhere else: redirects aren't followed, proxies of the environment
aren't used.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import quote, urlsplit

import aiohttp
import click
import orjson
from yarl import URL

from dispatcher.__about__ import __version__
from dispatcher.commands.group import ConfigError
from dispatcher.commands.loop import run
from dispatcher.core.text.redact import without_credentials

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_URL: Final = "http://127.0.0.1:8080"
_TIMEOUT: Final = 120.0  # seconds: a ping takes as long as its endpoint


class ApiRefused(click.ClickException):
    """The API answered no."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status

    @property
    def not_found(self) -> bool:
        """Whether what was asked for isn't there."""
        return self.status == 404


class ApiAnswer(NamedTuple):
    """An answer of the API; `json` is None where it has none."""

    status: int
    json: Any


class Api:
    """One dispatcher's API."""

    def __init__(self, url: str, key: str | None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
            raise ConfigError(
                f"{without_credentials(url)!r} is no address of an API; {DEFAULT_URL} is one (--url, DISPATCHER_API_URL)"
            )
        if key is not None and not (key.isascii() and key.isprintable()):
            raise ConfigError("the key has characters that no key has (--key, DISPATCHER_API_KEY)")
        self._url = url.rstrip("/")
        self._key = key

    @property
    def keyless(self) -> bool:
        """Whether no key is sent."""
        return self._key is None

    def get(self, path: str, **query: object) -> Any:
        """The answer's JSON. Parameters that are None are left out."""
        return self.call("GET", path, query=query).json

    def read(self, path: str, **query: object) -> bytes:
        """The bytes of an answer of whatever type. Parameters that are None are left out."""
        return run(self._read(path, query))

    async def _read(self, path: str, query: Mapping[str, object]) -> bytes:
        status, content_type, body = await self._exchange("GET", path, None, query, {"Accept": "*/*"})
        if 200 <= status < 300:
            return body
        self._judged(status, content_type, body)
        raise click.ClickException(f"{self._url} answered {status}")

    def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        query: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> ApiAnswer:
        """One request. Ends the command where the API refuses it."""
        return run(self._call(method, path, body, query or {}, headers or {}))

    async def _call(
        self,
        method: str,
        path: str,
        body: object,
        query: Mapping[str, object],
        headers: Mapping[str, str],
    ) -> ApiAnswer:
        return self._judged(*await self._exchange(method, path, body, query, headers))

    async def _exchange(
        self,
        method: str,
        path: str,
        body: object,
        query: Mapping[str, object],
        headers: Mapping[str, str],
    ) -> tuple[int, str, bytes]:
        """Status, content type and body of an answer."""
        sent = {"User-Agent": f"dispatcher/{__version__}", "Accept": "application/json", **headers}
        if self._key is not None:
            sent["Authorization"] = f"Bearer {self._key}"
        data = None
        if body is not None:
            data = orjson.dumps(body)
            sent["Content-Type"] = "application/merge-patch+json" if method == "PATCH" else "application/json"
        url = URL(self._url + path, encoded=True)
        given = {name: str(value) for name, value in query.items() if value is not None}
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(_TIMEOUT)) as session,
                session.request(
                    method, url.update_query(given), data=data, headers=sent, allow_redirects=False
                ) as response,
            ):
                text = await response.read()
                return response.status, response.content_type, text
        except TimeoutError as error:
            raise click.ClickException(
                f"no answer from {self._url} within {_TIMEOUT:g} s; what was asked for may still happen"
            ) from error
        except (aiohttp.ClientError, OSError) as error:
            said = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise click.ClickException(
                f"no dispatcher answers at {self._url}: {said}. Does it run there? --url or DISPATCHER_API_URL "
                "names another address"
            ) from error

    def _judged(self, status: int, content_type: str, text: bytes) -> ApiAnswer:
        document: Any = None
        if text and content_type in ("application/json", "application/problem+json"):
            try:
                document = orjson.loads(text)
            except orjson.JSONDecodeError:
                content_type = "not JSON"
        if 200 <= status < 300 and (document is not None or not text):
            return ApiAnswer(status, document)
        if not isinstance(document, dict) or "detail" not in document:
            raise click.ClickException(
                f"{self._url} answered {status} ({content_type}): no API of a dispatcher is there. --url or "
                "DISPATCHER_API_URL names another address"
            )
        raise self._refused(status, document)

    def _refused(self, status: int, document: Mapping[str, Any]) -> click.ClickException:
        errors = document.get("errors") or ()
        said = "; ".join(
            f"{each['field']}: {each['message']}" if each["field"] else str(each["message"])
            for each in errors
        )
        said = shown(said or str(document["detail"]))
        match status:
            case 401 if self._key is None:
                return click.ClickException("the API wants a key: --key, or DISPATCHER_API_KEY")
            case 401:
                return click.ClickException(f"{said} (--key, DISPATCHER_API_KEY)")
            case 400 | 422:
                return ConfigError(said)
            case 500:
                return click.ClickException(f"{said} ({shown(str(document.get('request_id')))})")
            case _:
                return ApiRefused(said, status)


def api_options(command: F) -> F:
    """Add `--url`, `--key` and `--json`; the command gets `api` and `as_json`."""

    @click.option(
        "--url",
        "api_url",
        envvar="DISPATCHER_API_URL",
        default=DEFAULT_URL,
        show_default=True,
        show_envvar=True,
        help="Where the API is.",
    )
    @click.option(
        "--key",
        "api_key",
        envvar="DISPATCHER_API_KEY",
        show_envvar=True,
        help="An API key; better in the environment, where others don't see it.",
    )
    @click.option("--json", "as_json", is_flag=True, help="Print JSON as the API gave it.")
    @wraps(command)
    def wrapped(*args: Any, api_url: str, api_key: str | None, **kwargs: Any) -> Any:
        return command(*args, api=Api(api_url, (api_key or "").strip() or None), **kwargs)

    return wrapped  # type: ignore[return-value] # wraps() forgets that the command is called with fewer options


def part(text: str) -> str:
    """A word as a part of a path."""
    if text in ("", ".", ".."):
        raise ConfigError(f"{text!r} can't be a name")
    return quote(text, safe="")


def print_json(document: object) -> None:
    """As it came: in UTF-8, which JSON is, whatever the terminal's encoding."""
    click.echo(orjson.dumps(document, option=orjson.OPT_INDENT_2))


def shown(text: str) -> str:
    """Text that others wrote, fit for a terminal: what would move the cursor or change colors is escaped."""
    return "".join(
        char if char.isprintable() or char == "\n" else char.encode("unicode_escape").decode()
        for char in text
    )


def interactive() -> bool:
    """Whether somebody could answer a question."""
    return sys.stdin.isatty()
