"""A real dispatcher with something to look at: endpoints that are well, fail, hang and are gone; events whose names are markup."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final, Self

import yaml

from tests.commands.console import end, environment
from tests.ports import HOST, free_port

MARKUP: Final = '<img src=x onerror="window.hit=1"><script>window.hit=1</script>'
"""What would run if anything that strangers write became HTML."""

_WITHIN: Final = 90.0  # seconds for what the stage waits for
_TYPES: Final[dict[str, dict[str, Any]]] = {
    "invoice.paid": {
        "description": "An invoice was paid in full.",
        "example": {"id": "inv_1", "amount": 4200, "currency": "EUR"},
    },
    "invoice.created": {"description": "An invoice was made.", "example": {"id": "inv_1", "amount": 4200}},
    "order.shipped": {
        "description": "An order left the warehouse.",
        "example": {"id": "ord_1", "carrier": "DHL"},
    },
    "report.ready": {"description": "A report can be read.", "example": {"id": "rep_1"}},
    "user.signed_up": {"description": "Somebody has an account now.", "example": {"id": "usr_1"}},
}


class Receiver(BaseHTTPRequestHandler):
    """Answers by the path of the request."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        server = self.server
        assert isinstance(server, Endpoints)
        server.last = ({name.lower(): value for name, value in self.headers.items()}, body)
        status, answer = server.answer(self.path)
        self.send_response(status)
        self.send_header("Content-Type", "text/html")
        self.send_header("X-Made-By", MARKUP)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Nobody reads it."""


class Endpoints(ThreadingHTTPServer):
    """All endpoints of the stage, on one port."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__((HOST, 0), Receiver)
        self.mended = threading.Event()
        self.last: tuple[dict[str, str], bytes] = ({}, b"")  # request
        self._turn = 0
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_port}"

    def answer(self, path: str) -> tuple[int, bytes]:
        self._turn += 1
        if path == "/flaky" and self._turn % 2 and not self.mended.is_set():
            return 503, f"try again later {MARKUP}".encode()
        if path == "/broken" and not self.mended.is_set():
            return 500, f"<h1>Internal error</h1>{MARKUP}".encode()
        if path == "/slow":
            time.sleep(6)  # slower than any busy machine makes the others
        if path == "/later":
            return 503, b"come back in an hour"
        if path == "/refused" and not self.mended.is_set():
            return 422, f"<h1>Refused</h1>{MARKUP}".encode()
        return 200, b'{"ok": true}'


class Stage:
    """`dispatcher run` on the embedded broker, with what is on the stage."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://{HOST}:{self.port}"
        self.endpoints = Endpoints()
        self.key: str | None = None
        document = {
            "broker": f"sqlite:///{folder / 'broker.db'}",
            "http": {"port": self.port},
            "network": {"allow": ["127.0.0.0/8"], "https_only": False},
            "log": {"format": "json"},
            "history": {"directory": str(folder / "history")},
            **settings,
        }
        (folder / "dispatcher.yaml").write_text(yaml.safe_dump(document))
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with (self.folder / "daemon.log").open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "dispatcher", "run", "--config", str(self.folder / "dispatcher.yaml")],
                cwd=self.folder,
                env=environment({}),
                stdout=output,
                stderr=output,
            )
        self.until(lambda: self._status("/readyz") == 200, "the dispatcher is ready")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        end(self._process)
        self.endpoints.shutdown()
        self.endpoints.server_close()

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until `condition` is true."""
        assert self._process is not None
        end = time.monotonic() + _WITHIN
        while not condition():
            log = (self.folder / "daemon.log").read_text(errors="replace")[-4000:]
            assert self._process.poll() is None, f"the dispatcher ended:\n{log}"
            assert time.monotonic() < end, f"not within {_WITHIN} s: {what}\n{log}"
            time.sleep(0.05)

    def _status(self, path: str) -> int:
        try:
            with urllib.request.urlopen(self.url + path, timeout=5) as answer:
                status: int = answer.status
                return status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """An answer of the API."""
        request = urllib.request.Request(
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json", **headers},
        )
        if self.key is not None:
            request.add_header("Authorization", f"Bearer {self.key}")
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{method} {path}: {error.code} {error.read().decode()}") from error
        return json.loads(text) if text else None

    def subscribe(self, name: str, path: str, types: list[str], **fields: Any) -> None:
        self.call(
            "POST",
            "/v1/subscriptions",
            {"id": name, "url": self.endpoints.url + path, "event_types": types, "tenant": "acme", **fields},
        )

    def publish(self, *events: dict[str, Any]) -> None:
        self.call("POST", "/v1/events", [{"tenant": "acme", **event} for event in events])

    def deliveries(self, query: str = "limit=200") -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.call("GET", f"/v1/deliveries?{query}")["deliveries"]
        return found

    def play(self) -> None:
        """Fill the stage, and wait until the history knows it all."""
        for name, entry in _TYPES.items():
            self.call("PUT", f"/v1/event-types/{name}", entry)
        self.call("PUT", "/v1/event-types/odd.one", {"description": MARKUP, "example": {"note": MARKUP}})
        self.subscribe("sub_billing", "/well", ["invoice.*"], headers={"X-Team": "billing"})
        self.subscribe("sub_audit", "/well", ["*"])
        self.subscribe("sub_shop", "/flaky", ["order.*"], retry={"schedule": ["1s", "2s", "1h"]})
        self.subscribe("sub_crm", "/broken", ["user.*", "invoice.paid"], retry={"schedule": ["200ms"]})
        self.subscribe(
            "sub_away",
            "/well",
            ["order.*"],
            url=f"http://{HOST}:{free_port()}/",
            retry={"schedule": ["1s", "1h"]},
        )
        # So few that no breaker opens: what they are owed stays as it is.
        self.subscribe("sub_later", "/later", ["report.ready"], retry={"schedule": ["1h"]})
        self.subscribe("sub_refused", "/refused", ["report.ready"], retry={"schedule": ["200ms"]})
        self.subscribe("sub_paused", "/well", ["invoice.*"], status="paused")
        big = {
            "numbers": list(range(300)),
            "offset": 9223372036854775807,
            "price": 1.10,
            "deep": {"a": {"b": {"c": [1, 2, {"d": MARKUP}]}}},
        }
        names = [name for name in _TYPES if name != "report.ready"]
        events = [
            {
                "type": names[n % len(names)],
                "id": f"evt_{n:04}",
                "data": {"id": f"obj_{n}", "amount": n * 100, "note": f"number {n}"},
            }
            for n in range(60)
        ]
        self.publish(*events[:40])
        self.publish(
            *events[40:],
            {"type": f"odd.{MARKUP}", "id": f"evt_{MARKUP}", "data": {"note": MARKUP, MARKUP: MARKUP}},
            *(
                {"type": "report.ready", "id": f"evt_report_{n}", "data": {"id": f"rep_{n}"}}
                for n in range(3)
            ),
            {"type": "invoice.paid", "id": "evt_large", "data": big},
            {
                "type": "invoice.paid",
                "id": "evt_mebibyte",
                "data": {
                    "text": "x" * 350_000,
                    "rows": [{"n": n, "name": f"row {n}"} for n in range(15_000)],
                },
            },
        )
        for query, count in (
            ("subscription=sub_refused&state=dead", 3),
            ("subscription=sub_later&state=retrying", 3),
            ("subscription=sub_audit&state=delivered&limit=200", 66),
            ("subscription=sub_crm&limit=200", 20),
        ):
            self.until(
                lambda query=query, count=count: len(self.deliveries(query)) >= count,  # type: ignore[misc]
                f"{count} deliveries of {query}",
            )
