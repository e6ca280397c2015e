"""Sphinx's settings for the site. `build.py` puts the pages together first."""

from __future__ import annotations

from dispatcher.__about__ import __version__

project = "webhook-dispatcher"
release = version = __version__
html_title = f"webhook-dispatcher {__version__}"

extensions = ["myst_parser"]
myst_heading_anchors = 4
highlight_language = "text"  # of what names no language: diagrams, terminals

html_theme = "furo"
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False
# Read from a disk or behind a company's wall: nothing is fetched from elsewhere.
html_theme_options: dict[str, list[object]] = {"footer_icons": []}
