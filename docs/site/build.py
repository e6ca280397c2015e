"""The documentation as a site with a search, for reading offline: `make site`, or `python docs/site/build.py FOLDER`.

In come the pages of `docs/`, those at the top of the project, and what the code says of itself: its commands and the routes of the API. Each
file that a page links to becomes a page as well. Sphinx makes HTML of it; a link that leads nowhere is an error.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click
import orjson

from dispatcher.cli import main as dispatcher

ROOT: Final = Path(__file__).parents[2]

_HOME: Final = "start"  # where the README goes

CONTENTS: Final = {
    "Start": [_HOME, "afternoon"],
    "How to": [
        "receivers",
        "api",
        "console",
        "portal",
        "deploying",
        "capacity",
        "tracing",
        "operations",
        "night",
        "afternoon",
    ],
    "Concepts": ["architecture", "history"],
    "Reference": ["settings", "commands", "routes", "metrics", "attempts"],
    "The project": ["SECURITY", "CHANGELOG", "CONTRIBUTING", "testing", "dependencies"],
}
"""The pages by part, in order. A page that is not there is left out; one that is in no part fails the build."""

_LINK: Final = re.compile(r"\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)")
_LANGUAGES: Final = {".json": "json", ".yaml": "yaml", ".service": "ini"}


class Site:
    """The pages, as they are put together."""

    def __init__(self, folder: Path) -> None:
        """`folder` is empty, and gets the sources."""
        self._folder = folder
        self._files: set[Path] = set()

    def write(self) -> None:
        """All pages."""
        for page in sorted([*ROOT.glob("docs/*.md"), *ROOT.glob("*.md")]):
            name = _HOME if page.name == "README.md" else page.stem
            self._page(name, self._linked(page.read_text(), page.parent))
        self._page("settings", self._settings())
        self._page("commands", "\n".join(_commands()))
        self._page("routes", "\n".join(_routes()))
        for file in sorted(self._files):
            self._page(f"files/{_flat(file)}", f"---\norphan: true\n---\n\n{_shown(file)}")
        self._page("index", self._index())

    def _page(self, name: str, text: str) -> None:
        path = self._folder / f"{name}.md"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    def _linked(self, text: str, folder: Path) -> str:
        """With links that hold in the site."""

        def onward(match: re.Match[str]) -> str:
            target = (folder / match[1]).resolve().relative_to(ROOT)
            if target.suffix == ".md":
                name = _HOME if target == Path("README.md") else target.stem
                return f"]({name}.md{match[2] or ''})"
            if target.suffix in {".png", ".svg"}:
                copy = self._folder / target.name
                copy.write_bytes((ROOT / target).read_bytes())
                return f"]({target.name})"
            if (ROOT / target).is_dir():
                return f"]({_HOME}.md) (`{target}`)"
            self._files.add(target)
            return f"](files/{_flat(target)}.md)"

        return _LINK.sub(onward, text)

    def _settings(self) -> str:
        return f"# Settings\n\nEvery setting with its default.\n\n{_fenced(Path('config/dispatcher.yaml'))}"

    def _index(self) -> str:
        parts = [
            "# webhook-dispatcher",
            "",
            "Webhooks from Kafka: signed, isolated per host, retried for days, observable.",
            "",
        ]
        listed = set()
        for part, names in CONTENTS.items():
            there = [name for name in names if (self._folder / f"{name}.md").exists()]
            listed.update(there)
            parts += ["```{toctree}", f":caption: {part}", ":maxdepth: 1", "", *there, "```", ""]
        if left := {page.stem for page in self._folder.glob("*.md")} - listed:
            raise SystemExit(f"{', '.join(sorted(left))}: in no part of the contents (docs/site/build.py)")
        return "\n".join(parts)


def _flat(file: Path) -> str:
    return str(file).replace("/", "-").replace(".", "-")


def _fenced(file: Path) -> str:
    return f"````{_LANGUAGES.get(file.suffix, 'text')}\n{(ROOT / file).read_text()}\n````\n"


def _shown(file: Path) -> str:
    return f"# {file}\n\n{_fenced(file)}"


def _commands() -> Iterator[str]:
    """The help of each command, as the terminal shows it."""
    yield "# Commands\n\nWhat `--help` says of each.\n"
    yield from _command(dispatcher, click.Context(dispatcher, info_name="dispatcher"))


def _command(command: click.Command, context: click.Context) -> Iterator[str]:
    yield f"## {context.command_path}\n\n```text\n{command.get_help(context)}\n```\n"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            if child is not None and not child.hidden:
                yield from _command(child, click.Context(child, info_name=name, parent=context))


def _routes() -> Iterator[str]:
    """Each route of the API, out of its OpenAPI document."""
    document: dict[str, Any] = orjson.loads((ROOT / "docs" / "openapi.json").read_bytes())
    yield "# Routes of the API\n\nA running dispatcher shows them at `/docs`, with every field, and lets you try them.\n"
    for path, methods in document["paths"].items():
        for method, route in methods.items():
            if not isinstance(route, dict) or "responses" not in route:
                continue
            yield f"## {method.upper()} {path}\n\n{route.get('summary', '')}.\n\n{route.get('description', '')}\n"
            if parameters := route.get("parameters"):
                yield "| parameter | in | |\n| --- | --- | --- |"
                for parameter in parameters:
                    said = parameter.get("description", "").replace("\n", " ").replace("|", "\\|")
                    yield f"| `{parameter['name']}` | {parameter['in']} | {said} |"
                yield ""
            yield "| status | |\n| --- | --- |"
            for status, response in route["responses"].items():
                said = response.get("description", "").replace("\n", " ").replace("|", "\\|")
                yield f"| {status} | {said} |"
            yield ""


def main(target: str) -> None:
    """Make the site in the folder `target`."""
    with tempfile.TemporaryDirectory(prefix="site-") as sources:
        Site(Path(sources)).write()
        config = str(Path(__file__).parent)
        command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "-c", config]
        subprocess.run([*command, "-d", f"{sources}/.doctrees", sources, target], check=True)  # noqa: S603 - ours


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "dist/site")
