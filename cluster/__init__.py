"""What the machine offers, and where a run is stored. Imports none of the other folders."""

import importlib.util
import sys
from pathlib import Path

if any(importlib.util.find_spec(name) is None for name in ("pydantic", "ray", "yaml")):
    # Every command imports this package before anything that could be missing.
    _home = Path(__file__).resolve().parent.parent
    print(
        f"regenesis: the packages are missing in {sys.executable}; run `make setup` in {_home} and "
        f"use {_home / '.venv' / 'bin' / 'regenesis'}",
        file=sys.stderr,
    )
    raise SystemExit(2)
