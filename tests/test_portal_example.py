"""The host application of docs/portal.md, run against a dispatcher."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from tests.api.serving import KEY, serving

EXAMPLE = Path(__file__).parent.parent / "docs" / "portal-example"


async def test_the_host_gets_a_session_for_its_customer_and_never_shows_its_key() -> None:
    async with serving(KEY) as (call, _):
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(EXAMPLE / "host.py"),
            env={**os.environ, "DISPATCHER_API_URL": call.base, "DISPATCHER_API_KEY": KEY, "PORT": "0"},
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            assert process.stdout is not None
            host = (await process.stdout.readline()).decode().strip()
            sent = ""
            for path in ("/", "/host.js"):
                async with call.session.get(host + path) as response:
                    assert response.status == 200
                    sent += await response.text()
            async with call.session.post(f"{host}/portal-session") as response:
                made: dict[str, Any] = json.loads(body := await response.text())
            assert made["url"] == f"{call.base}/portal#token={made['token']}"
            found = (await call.using(made["token"])("GET", "/v1/session")).json
            assert found["principal"]["tenant"] == "acme"
            assert KEY not in sent + body
            foreign = {"Sec-Fetch-Site": "cross-site"}
            async with call.session.post(f"{host}/portal-session", headers=foreign) as response:
                assert response.status == 404
        finally:
            process.terminate()
            await process.wait()


def test_the_page_answers_its_own_frame_and_names_the_portals_origin() -> None:
    script = (EXAMPLE / "host.js").read_text()
    assert "event.source !== frame.contentWindow || event.origin !== portal" in script
    assert 'postMessage({ type: "dispatcher:token", token }, portal)' in script
    assert '"*"' not in script
