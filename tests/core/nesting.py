"""How deep JSON is nested that nobody reads."""

import sys
from typing import Final

NESTED: Final = 20_000 if sys.version_info >= (3, 13) else 3_000
"""Levels. Parsers read fewer than a thousand, and from Python 3.13 on fewer than ten thousand."""
