"""A host application that shows the portal to its customers, as small as it can be. Python's standard library is enough.

    DISPATCHER_API_URL=http://127.0.0.1:8080 DISPATCHER_API_KEY=... python host.py

Then open http://127.0.0.1:3000. The dispatcher has to allow the page to embed it: portal.frame_ancestors [http://127.0.0.1:3000].
"""

import json
import os
import sys
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

API = os.environ.get("DISPATCHER_API_URL", "http://127.0.0.1:8080").rstrip("/")
KEY = os.environ.get("DISPATCHER_API_KEY", "")  # an operator's; it never leaves this process
HERE = Path(__file__).parent
FILES = {"/": ("index.html", "text/html"), "/host.js": ("host.js", "text/javascript")}


def portal_session(tenant):
    """A session of the portal for this customer, as the dispatcher answers it."""
    new = {
        "tenant": tenant,
        "lifetime": "1h",
        "capabilities": ["read", "write", "secrets", "resend"],
        "gutters": False,
        "branding": {
            "name": "Example Inc.",
            "colors": {"light": {"accent": "#1a56db"}, "dark": {"accent": "#76a9fa"}},
        },
    }
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {KEY}"} if KEY else {})
    request = urllib.request.Request(f"{API}/v1/portal-sessions", json.dumps(new).encode(), headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


class Host(BaseHTTPRequestHandler):
    def do_GET(self):
        name, kind = FILES.get(self.path, (None, None))
        if name is None:
            self.send_error(404)
        else:
            self.answer((HERE / name).read_bytes(), kind)

    def do_POST(self):
        # A real application knows here who has logged in, and of which customer they are. It never takes the tenant from the page.
        if (
            self.path != "/portal-session"
            or self.headers.get("Sec-Fetch-Site", "same-origin") != "same-origin"
        ):
            self.send_error(404)
            return
        made = portal_session("acme")
        self.answer(json.dumps({"url": made["url"], "token": made["token"]}).encode(), "application/json")

    def answer(self, body, kind):
        self.send_response(200)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Say nothing."""


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("PORT", "3000"))), Host)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        sys.exit(0)
