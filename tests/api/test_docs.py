"""/docs: a page that fetches nothing from elsewhere, and is held to that."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import dispatcher.api
from tests.api.serving import KEY, serving

PAGE = Path(dispatcher.api.__file__ or "").parent / "page"


async def test_the_page_and_all_its_parts_are_served_without_a_key() -> None:
    async with serving(KEY) as (call, _):
        page = await call.using(None)("GET", "/docs")
        assert page.status == 200
        assert page.headers["Content-Type"] == "text/html; charset=utf-8"
        parts = re.findall(r'(?:src|href)="(docs/[^"]+)"', page.body.decode())
        assert len(parts) == 4
        for part in parts:
            answer = await call.using(None)("GET", f"/{part}")
            assert answer.status == 200
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            again = await call("GET", f"/{part}", headers={"If-None-Match": answer.headers["ETag"]})
            assert again.status == 304


async def test_the_policy_lets_nothing_in_from_elsewhere_and_nothing_inline() -> None:
    async with serving() as (call, _):
        policy = (await call("GET", "/docs")).headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert not re.search(r"https?:|\*", policy)


def test_the_page_itself_names_no_other_server_and_has_no_inline_script_or_style() -> None:
    html = (PAGE / "index.html").read_text()
    assert not re.search(r"<script(?![^>]*src=)|\son\w+=|<style|style=", html)
    for name in ("index.html", "page.js", "page.css"):
        assert not re.search(r"https?://", (PAGE / name).read_text())
    assert "innerHTML" not in (PAGE / "page.js").read_text()


@pytest.mark.parametrize("name", ["..%2fserver.py", "index.html", "swagger-ui%2fLICENSE", "nothing.js"])
async def test_nothing_else_is_served_from_the_package(name: str) -> None:
    async with serving() as (call, _):
        assert (await call("GET", f"/docs/{name}")).status == 404


def test_the_renderer_comes_with_its_licence() -> None:
    for name in ("LICENSE", "NOTICE", "swagger-ui-bundle.js.LICENSE.txt"):
        assert (PAGE / "swagger-ui" / name).read_text().strip()
