"""The nearest of the known names, for messages about one that is not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """`` (nearest: gsm8k)``, or nothing where nothing is near."""
    found = difflib.get_close_matches(name, list(known), n=1)
    return f" (nearest: {found[0]})" if found else ""
