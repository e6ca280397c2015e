"""What is shipped in `dispatcher/web` is what `web/` builds, is small, and holds nothing that it must not."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
WEB = ROOT / "web"
BUILT = ROOT / "dispatcher" / "web"
_NODE = (20, 19)  # what Vite needs


def node() -> bool:
    """Whether a Node is there that can build it, with its package manager."""
    path = shutil.which("node")
    if path is None or shutil.which("npm") is None:
        return False
    said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30, check=False).stdout
    found = re.match(r"v(\d+)\.(\d+)", said)
    return found is not None and (int(found[1]), int(found[2])) >= _NODE


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".py"
    }


def test_it_is_at_most_100_kib_compressed_in_all() -> None:
    sizes = {name: len(gzip.compress(body, 9)) for name, body in files(BUILT).items()}
    assert "index.html" in sizes
    assert sum(sizes.values()) <= 100 << 10, sizes


@pytest.mark.skipif(not node(), reason="needs Node 20.19 or newer with npm")
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_sources_build_what_is_shipped_byte_by_byte(tmp_path: Path) -> None:
    copy = tmp_path / "checkout"
    for name in ("web", "docs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("node_modules"))
    (copy / "dispatcher").mkdir()
    for command in (
        ["npm", "ci"],
        ["npm", "run", "types"],
        ["npm", "run", "check"],
        ["npm", "test"],
        ["npm", "run", "build"],
    ):
        ran = subprocess.run(
            command, cwd=copy / "web", capture_output=True, text=True, timeout=600, check=False
        )
        assert ran.returncode == 0, f"{' '.join(command)}\n{ran.stdout[-6000:]}\n{ran.stderr[-4000:]}"
    assert files(copy / "dispatcher" / "web") == files(BUILT), "run `make web` and commit what it changes"


def test_the_lock_file_names_no_registry() -> None:
    lock = (WEB / "package-lock.json").read_text()
    assert not re.search(r"https?://[^\"]*\.tgz", lock)
    packages = json.loads(lock)["packages"]
    assert all("integrity" in each for name, each in packages.items() if name and not each.get("link"))
    run_time = [name for name, each in packages.items() if name and not each.get("dev")]
    assert sorted(run_time) == ["node_modules/preact", "node_modules/uplot"]


class _Inline(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.addresses: list[str] = []
        self._in = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in = tag
        for name, value in attrs:
            if name == "style" or name.startswith("on"):
                self.found.append(f"{tag} {name}")
            if name in ("src", "href"):
                self.addresses.append(value or "")

    def handle_data(self, data: str) -> None:
        if self._in in ("script", "style") and data.strip():
            self.found.append(f"{self._in}: {data}")

    def handle_endtag(self, tag: str) -> None:
        self._in = ""


def test_the_document_has_nothing_inline_and_relative_addresses_only() -> None:
    parser = _Inline()
    parser.feed((BUILT / "index.html").read_text())
    assert parser.found == []
    assert parser.addresses
    assert all(re.fullmatch(r"\./assets/[\w.-]+", address) for address in parser.addresses), parser.addresses


def test_no_source_makes_markup_of_text() -> None:
    ways = re.compile(
        r"innerHTML|outerHTML|insertAdjacentHTML|dangerouslySetInnerHTML|document\.write|createContextualFragment|DOMParser|srcdoc|\beval\(|new Function"
    )
    wrong = [
        f"{path.name}: {found[0]}"
        for path in (WEB / "src").rglob("*.ts*")
        if path.name != "schema.d.ts"
        for found in ways.finditer(path.read_text())
    ]
    assert wrong == []


def test_no_address_of_another_host_is_in_it() -> None:
    for name, body in files(BUILT).items():
        hosts = set(re.findall(rb"(?:https?:)?//([a-z0-9-]+(?:\.[a-z0-9-]+)+)", body))
        # Of names of XML's vocabularies and of examples for people nothing is fetched.
        assert hosts <= {b"www.w3.org", b"example.com"}, (name, hosts)


def test_every_package_has_its_reason() -> None:
    wanted = json.loads((WEB / "package.json").read_text())
    names = {*wanted["dependencies"], *wanted["devDependencies"]}
    told = set(re.findall(r"^\| `([a-z-]+)` \|", (ROOT / "docs/dependencies.md").read_text(), re.MULTILINE))
    assert names == told
