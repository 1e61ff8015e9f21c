"""The nearest known name, for messages about an unknown one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """`` (nearest: gsm8k)``, or an empty text if nothing is near."""
    found = difflib.get_close_matches(name, list(known), n=1)
    return f" (nearest: {found[0]})" if found else ""
