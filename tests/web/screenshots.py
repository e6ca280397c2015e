"""`python -m tests.web.screenshots`: the two pictures of the README, taken of a dispatcher with something to look at."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.web.browser import browser, opened, settled
from tests.web.stage import Stage

DOCS = Path(__file__).parent.parent.parent / "docs"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, Stage(Path(folder)) as stage, browser() as window:
        stage.play()
        tried = next(
            each for each in stage.deliveries("subscription=sub_shop&limit=50") if each["attempts"] > 1
        )
        for name, address, theme in (
            ("console-light", "deliveries?state=failed", "light"),
            ("console-dark", f"delivery?id={tried['id']}", "dark"),
        ):
            with opened(window, f"{stage.url}/console/{address}", theme=theme, zone="UTC") as (page, watch):
                settled(page)
                page.screenshot(path=DOCS / f"{name}.png")
                watch.check()


if __name__ == "__main__":
    main()
