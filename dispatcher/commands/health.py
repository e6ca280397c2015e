"""`python -m dispatcher.commands.health`: is the daemon of this configuration ready? For the image's HEALTHCHECK.

The command reads file and environment as `run` does, so that the port need not be said twice. It can't know the
flags that `run` was given. It exits 0 when `/readyz` answers 200, else 1 with the reason.
"""

from __future__ import annotations

import os
import sys
import urllib.error
import urllib.request
from pathlib import Path

from dispatcher.commands.options import load_settings
from dispatcher.settings.groups import HttpSettings

_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - where to ask, not to bind
_TIMEOUT = 4.0


def url(http: HttpSettings) -> str:
    """Where the daemon answers, seen from its own machine."""
    host = _ANYWHERE.get(http.host, http.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{http.port}/readyz"


def main() -> int:
    """Ask once."""
    file = os.environ.get("DISPATCHER_CONFIG")
    asked = url(load_settings(None if file is None else Path(file), {}).http)
    try:
        with urllib.request.urlopen(asked, timeout=_TIMEOUT):  # noqa: S310 - always http, see url()
            return 0
    except urllib.error.HTTPError as error:
        print(error.read().decode(errors="replace"), file=sys.stderr)  # noqa: T201 - what `docker inspect` shows
    except OSError as error:
        print(f"{asked}: {error}", file=sys.stderr)  # noqa: T201 - likewise
    return 1


if __name__ == "__main__":
    sys.exit(main())
