"""`dispatcher listen`: a local endpoint that shows each request, to try how deliveries look and how they are retried."""

from __future__ import annotations

import asyncio
import base64
import errno
import random
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

import click
import uvloop
from rich.console import Console
from rich.text import Text

from dispatcher.commands.inspection import Inspection
from dispatcher.commands.inspection_server import NAME, InspectionServer
from dispatcher.commands.receiver import (
    Arrival,
    InvalidSecretError,
    Receiver,
    ReceiverAnswer,
    SignatureVerdict,
    secret_key,
)

_STYLES = {
    SignatureVerdict.VALID: "green",
    SignatureVerdict.MISSING: "yellow",
    SignatureVerdict.STALE: "yellow",
    SignatureVerdict.WRONG: "bold red",
}


@click.command(short_help="Receive webhooks here: verify and print them.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", default=9000, show_default=True, type=click.IntRange(0, 65535), help="Port; 0 takes a free one."
)
@click.option("--secret", metavar="WHSEC", help="Signing secret, whsec_... [default: a new one, printed]")
@click.option(
    "--status", default=200, show_default=True, type=click.IntRange(200, 599), help="Status to answer with."
)
@click.option(
    "--fail-rate",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="Share of the requests to answer with 500 instead.",
)
@click.option(
    "--delay",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0, 3600),
    help="Seconds to wait before each answer.",
)
@click.option(
    "--inspect",
    is_flag=True,
    help="Show the last requests on a page too: headers, body, signature, answer.",
)
@click.option(
    "--inspect-host", default="127.0.0.1", show_default=True, help="Address of the page of --inspect."
)
@click.option(
    "--inspect-port",
    default=9001,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Port of the page; 0 takes a free one.",
)
def listen(
    host: str,
    port: int,
    secret: str | None,
    status: int,
    fail_rate: float,
    delay: float,
    *,
    inspect: bool,
    inspect_host: str,
    inspect_port: int,
) -> None:
    """Receive webhooks here: verify each signature and print a line per request.

    Without --secret a new one is made, and the subscription to paste is printed. With --inspect a page shows the last
    requests, at the address that is printed. Stop with Ctrl-C.
    """
    made = secret is None
    if secret is None:
        secret = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
    try:
        key = secret_key(secret)
    except InvalidSecretError as error:
        raise click.BadParameter(str(error), param_hint="--secret") from error

    def answer(_id: str, _number: int) -> ReceiverAnswer:
        # Chance decides which requests fail, nothing secret.
        failed = random.random() < fail_rate  # noqa: S311
        return ReceiverAnswer(500 if failed else status, delay)

    console = Console(highlight=False)

    def show(arrival: Arrival) -> None:
        # One line per request: cut to the screen where there is one, whole in a file or a pipe.
        if console.is_terminal:
            console.print(line(arrival), no_wrap=True, overflow="ellipsis")
        else:
            console.print(line(arrival), soft_wrap=True)

    inspection = Inspection()

    def arrived(arrival: Arrival) -> None:
        if inspect:
            inspection.keep(arrival)
        show(arrival)

    receiver = Receiver(key, arrived, answer, inspection.note_left)
    page = (lambda url: InspectionServer(inspection, key, url)) if inspect else None
    place = ListenPlace(host, port, inspect_host, inspect_port)
    with suppress(KeyboardInterrupt):  # Ctrl-C is how this command ends
        uvloop.run(_serve(receiver, page, place, secret if made else None, console))


class ListenPlace(NamedTuple):
    """Where the receiver listens, and where its page."""

    host: str
    port: int
    page_host: str
    page_port: int


async def _serve(
    receiver: Receiver,
    page: Callable[[str], InspectionServer] | None,
    place: ListenPlace,
    secret: str | None,
    console: Console,
) -> None:
    server, page_port = None, 0
    with _said(place.host, place.port, "--port"):
        port = await receiver.start(place.host, place.port)
    url = _url(place.host, port)
    try:
        if page is not None:
            server = page(url)
            with _said(place.page_host, place.page_port, "--inspect-port"):
                page_port = await server.start(place.page_host, place.page_port)
        console.print(f"Listening on {url}", soft_wrap=True)
        if server is not None:
            console.print(f"Inspect at {_url(place.page_host, page_port)}{NAME}/", soft_wrap=True)
        if secret is not None:
            console.print(snippet(url, secret), style="dim", soft_wrap=True, markup=False)
        await asyncio.get_running_loop().create_future()
    finally:
        if server is not None:
            await server.stop()
        await receiver.stop()


def _url(host: str, port: int) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


@contextmanager
def _said(host: str, port: int, option: str) -> Iterator[None]:
    """Tell why it can't listen there."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise click.ClickException(f"port {port} is taken: choose another with {option}") from error
        raise click.ClickException(f"can't listen on {host}:{port}: {error.strerror or error}") from error


def snippet(url: str, secret: str) -> str:
    """Return what to put into the subscriptions file, and what the dispatcher has to be told to call a local address."""
    return f"""\
A subscription for it (config/subscriptions.yaml):

subscriptions:
  - id: local
    url: {url}
    event_types: ["*"]
    secrets: ["{secret}"]

The dispatcher calls local and unencrypted addresses only when it is told to:

network:
  allow: [127.0.0.0/8, "::1/128"]
  https_only: false
"""


def line(arrival: Arrival) -> Text:
    """Return a request as one line: when, answer, verdict, id, type, which try, size, and how its body begins."""
    text = Text(time.strftime("%H:%M:%S", time.localtime(arrival.at)))
    status = arrival.answer.status
    text.append(f"  {status}", style="green" if status is not None and status < 300 else "red")
    text.append(f"  {arrival.verdict:<7}", style=_STYLES[arrival.verdict])
    text.append(f"  {printable(arrival.id) or '(no id)'}", style="bold")
    if kind := arrival.headers.get("webhook-event-type"):
        text.append(f"  {printable(kind)}")
    if arrival.number > 1 and arrival.id:
        text.append(f"  try {arrival.number}", style="yellow")
    text.append(f"  {len(arrival.body)} B  ")
    beginning = arrival.body[:400].decode("utf-8", "replace")
    text.append(printable(" ".join(beginning.split())), style="dim")
    return text


def printable(text: str) -> str:
    """Return it without anything that could move the cursor or colour the terminal: others choose this text."""
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text
    )
