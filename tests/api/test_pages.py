"""/console and /portal: one shell for every path, its parts, and what a browser is held to."""

from __future__ import annotations

import gzip
import re
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import aiohttp
import pytest
from aiohttp import web

from dispatcher.api import pages
from dispatcher.api.pages import base_of
from tests.api.serving import KEY, Client, problem, serving

SCRIPT = b"console.log(1);\n" * 200
DIRECTIVES = {
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self' data:",
    "font-src 'self'",
    "connect-src 'self'",
    "base-uri 'self'",
    "form-action 'none'",
    "require-trusted-types-for 'script'",
    "trusted-types 'none'",
}


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with an application in it."""
    folder = tmp_path / "web"
    (folder / "assets").mkdir(parents=True)
    (folder / "index.html").write_text(
        '<!doctype html><html lang="en"><head><script type="module" src="./assets/index-AbCd1234.js"></script></head></html>'
    )
    (folder / "assets" / "index-AbCd1234.js").write_bytes(SCRIPT)
    (folder / "assets" / "plain.css").write_text("a{}")
    (folder / "assets" / "notes.map").write_text("{}")
    monkeypatch.setattr(pages, "files", lambda _package: tmp_path)
    return folder


@pytest.mark.parametrize(
    ("path", "base"),
    [
        ("/console", "console/"),
        ("/console/", "./"),
        ("/console/deliveries", "./"),
        ("/console/deliveries/dlv_1", "../"),
        ("/console/a/b/c", "../../"),
        ("/console/a%2Fb", "./"),
        ("/prefix/console/a/b", "../"),
    ],
)
def test_the_base_leads_to_the_root_of_the_pages_from_every_depth(path: str, base: str) -> None:
    assert base_of(path, "console") == base
    root = urljoin("https://hooks.example" + path, base)
    assert root == f"https://hooks.example{'/prefix' if path.startswith('/prefix') else ''}/console/"


def test_an_empty_part_of_a_path_is_a_part_as_browsers_count_it() -> None:
    assert base_of("/console//a", "console") == "../"


async def parts_of(session: aiohttp.ClientSession, url: str) -> str:
    """The address of the script that the page at the address loads."""
    async with session.get(url) as response:
        assert response.status == 200, url
        html = await response.text()
    base = re.search(r'<head><base href="([^"]+)">', html)
    script = re.search(r'src="([^"]+)"', html)
    assert base is not None
    assert script is not None
    return str(urljoin(urljoin(url, base[1]), script[1]))


async def test_every_path_below_is_the_application_which_finds_its_parts(built: Path) -> None:
    async with serving(KEY) as (call, _):
        for name in ("console", "portal"):
            for path in ("", "/", "/deliveries?state=dead", "/deliveries/dlv_1", "/a/b/c/d", "/a%2Fb/c"):
                script = await parts_of(call.session, f"{call.base}/{name}{path}")
                assert script == f"{call.base}/{name}/assets/index-AbCd1234.js"
                async with call.session.get(script) as response:
                    assert (response.status, await response.read()) == (200, SCRIPT)


async def test_behind_a_proxy_with_a_prefix_nothing_has_to_be_told(built: Path) -> None:
    async with serving(KEY) as (call, _):

        async def forward(request: web.Request) -> web.Response:
            async with call.session.get(call.base + request.path_qs.removeprefix("/hooks")) as answer:
                return web.Response(
                    body=await answer.read(), status=answer.status, content_type=answer.content_type
                )

        app = web.Application()
        app.router.add_get("/hooks/{rest:.*}", forward)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            port = runner.addresses[0][1]
            url = f"http://127.0.0.1:{port}/hooks/console/deliveries/dlv_1"
            script = await parts_of(call.session, url)
            assert script == f"http://127.0.0.1:{port}/hooks/console/assets/index-AbCd1234.js"
            async with call.session.get(script) as response:
                assert await response.read() == SCRIPT
        finally:
            await runner.cleanup()


def directives(policy: str) -> set[str]:
    return {each.strip() for each in policy.split(";")}


async def test_a_page_is_held_to_this_server_and_nobody_embeds_it(built: Path) -> None:
    async with serving(KEY) as (call, _):
        for path in ("/console", "/portal/deliveries"):
            headers = (await call("GET", path)).headers
            assert directives(headers["Content-Security-Policy"]) == {*DIRECTIVES, "frame-ancestors 'none'"}
            assert headers["X-Frame-Options"] == "DENY"
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert headers["Referrer-Policy"] == "no-referrer"
            assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
            assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
            assert headers["Cache-Control"] == "no-cache"


async def test_the_portal_is_embedded_by_those_that_the_settings_name_and_the_console_by_none(
    built: Path,
) -> None:
    origins = ["https://app.example.com", "https://*.example.org", "http://localhost:3000"]
    async with serving(KEY, settings={"portal": {"frame_ancestors": origins}}) as (call, _):
        portal = (await call("GET", "/portal/x")).headers
        wanted = f"frame-ancestors {' '.join(origins)}"
        assert directives(portal["Content-Security-Policy"]) == {*DIRECTIVES, wanted}
        assert "X-Frame-Options" not in portal
        console = (await call("GET", "/console/x")).headers
        assert "frame-ancestors 'none'" in console["Content-Security-Policy"]
        assert console["X-Frame-Options"] == "DENY"


async def raw(call: Client, path: str, **headers: str) -> tuple[int, Any, bytes]:
    async with (
        aiohttp.ClientSession(auto_decompress=False) as session,
        session.get(call.base + path, headers=headers) as response,
    ):
        return response.status, response.headers, await response.read()


async def test_what_has_a_hash_in_its_name_is_kept_for_ever_and_sent_compressed(built: Path) -> None:
    async with serving(KEY) as (call, _):
        path = "/console/assets/index-AbCd1234.js"
        status, headers, body = await raw(call, path, **{"Accept-Encoding": "br, gzip"})
        assert (status, headers["Content-Encoding"], gzip.decompress(body)) == (200, "gzip", SCRIPT)
        assert headers["Content-Type"] == "text/javascript; charset=utf-8"
        assert headers["Cache-Control"] == "public, max-age=31536000, immutable"
        assert headers["Vary"] == "Accept-Encoding"
        for coding in ("identity", "gzip;q=0"):
            _, plain, body = await raw(call, path, **{"Accept-Encoding": coding})
            assert body == SCRIPT
            assert "Content-Encoding" not in plain
            assert plain["ETag"] != headers["ETag"]
        again = await raw(call, path, **{"Accept-Encoding": "gzip", "If-None-Match": headers["ETag"]})
        assert (again[0], again[2]) == (304, b"")
        _, css, _ = await raw(call, "/portal/assets/plain.css")
        assert css["Cache-Control"] == "no-cache"
        shell = await call("GET", "/console/a")
        assert (await raw(call, "/console/b", **{"If-None-Match": shell.headers["ETag"]}))[0] == 304
        assert (await raw(call, "/console/a/b", **{"If-None-Match": shell.headers["ETag"]}))[0] == 200


@pytest.mark.parametrize(
    "name", ["..%2findex.html", "%2e%2e%2f%2e%2e%2fapp.py", "notes.map", "nothing.js", ".", "index.html"]
)
async def test_nothing_else_is_served_from_the_package(built: Path, name: str) -> None:
    async with serving(KEY) as (call, _):
        problem(await call("GET", f"/console/assets/{name}"), 404, "not-found")


async def test_a_package_without_the_pages_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "files", lambda _package: tmp_path)
    async with serving(KEY) as (call, _):
        said = problem(await call("GET", "/console"), 404, "not-found")
        assert "make web" in said["detail"]
        problem(await call("GET", "/console/assets/index.js"), 404, "not-found")


def test_this_package_has_the_pages() -> None:
    html = files("dispatcher").joinpath("web/index.html").read_text()
    assert "<head>" in html
    assert not re.search(r"<script(?![^>]*src=)|\son\w+=|<style|style=|https?://", html)
    for part in re.findall(r'(?:src|href)="\./(assets/[^"]+)"', html):
        assert files("dispatcher").joinpath("web", part).is_file()


async def test_either_can_be_turned_off(built: Path) -> None:
    async with serving(KEY, settings={"console": {"enabled": False}}) as (call, _):
        assert (await call("GET", "/console")).status == 404
        assert (await call("GET", "/portal")).status == 200
    async with serving(KEY, settings={"portal": {"enabled": False}}) as (call, _):
        assert (await call("GET", "/console")).status == 200
        assert (await call("GET", "/portal")).status == 404


async def test_people_are_led_to_the_console_and_programs_to_what_describes_the_api(built: Path) -> None:
    people = {"Accept": "text/html,application/xhtml+xml"}
    async with serving(KEY) as (call, _):
        for headers, place in ((people, "console"), ({}, "docs")):
            answer = await call("GET", "/", headers=headers, allow_redirects=False)
            assert (answer.status, answer.headers["Location"]) == (302, place)
        assert (await call.using(None)("GET", "/", headers=people)).status == 200
    async with serving(KEY, settings={"console": {"enabled": False}}) as (call, _):
        answer = await call("GET", "/", headers=people, allow_redirects=False)
        assert answer.headers["Location"] == "docs"


async def test_an_image_is_an_image_and_an_svg_runs_nothing(built: Path) -> None:
    svg = b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"><script>alert(1)</script></svg>'
    async with serving(KEY) as (call, plane):
        image = await plane.portal.add_image(svg)
        answer = await call.using(None)("GET", f"/portal/images/{image.id}")
        assert (answer.status, answer.body) == (200, svg)
        assert answer.headers["Content-Type"] == "image/svg+xml"
        assert answer.headers["Content-Security-Policy"] == "default-src 'none'; sandbox"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        known = {"If-None-Match": answer.headers["ETag"]}
        assert (await call("GET", f"/portal/images/{image.id}", headers=known)).status == 304
        problem(await call("GET", "/portal/images/none"), 404, "not-found")
        plane.keys.loaded = False
        problem(await call("GET", f"/portal/images/{image.id}"), 503, "unavailable")


async def test_an_open_api_shows_its_pages_to_this_machine_alone(built: Path) -> None:
    async with serving() as (call, _):
        assert (await call("GET", "/console")).status == 200
        link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
        assert (await call("GET", "/console/deliveries/dlv_1", headers=link)).status == 200
        rebound = await call("GET", "/console", headers={"Host": "rebound.example"})
        problem(rebound, 403, "foreign-origin")
