"""What `--tasks` names: datasets of the config, known benchmarks, generated families and files."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Mapping
from typing import Any

from cluster.errors import InputError
from cluster.settings import laid_over
from evaluation.question import Split
from evaluation.reading.files import SUFFIXES, suffix_of
from evaluation.reading.names import nearest
from evaluation.reading.rows import resolve
from evaluation.task import tasks
from pipelines.questions.task_listing import GYM

ASKED: tuple[Split, ...] = ("dev", "test")
"""The splits that may be asked; nothing is trained on."""


def asked_datasets(
    given: Mapping[str, Any], names: Iterable[str], split: Split, limit: int | None
) -> dict[str, Any]:
    """The branch `questions.datasets` for some tasks, of which only one split is asked.

    `given` are the datasets of the config; what it says of a task goes before what is known of it.
    `limit` is the most questions of each task. Raises `InputError` for an unknown task.
    """
    found: dict[str, Any] = {}
    for name in names:
        dataset, known = _dataset(name, given)
        if dataset in found:
            raise InputError(f"--tasks: {dataset} is named twice; name it once")
        tree = laid_over(known, given.get(dataset) or {})
        found[dataset] = laid_over(tree, _limits(split, limit))
    if not found:
        raise InputError("--tasks names no task; `regenesis tasks` lists the known ones")
    return found


def _limits(split: Split, limit: int | None) -> dict[str, Any]:
    others = {f"num_{other}": 0 for other in ("train", *ASKED) if other != split}
    return others if limit is None else others | {f"num_{split}": limit}


def _dataset(name: str, given: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name of the dataset, and what is known of it without the config."""
    named, equals, path = name.partition("=")
    if equals:
        return _in_files(named, path)
    if name in given and "kind" in (given[name].get("source") or {}):
        return name, {}
    if name in tasks():
        return name, _outside({"kind": "task", "name": name})
    if name.startswith(GYM):
        family = name.removeprefix(GYM)
        return _plain(family), _outside({"kind": "reasoning_gym", "family": family})
    if suffix_of(name) in SUFFIXES:
        return _in_files(_plain(posixpath.basename(name).partition(".")[0]), name)
    known = [*given, *tasks()]
    raise InputError(
        f"--tasks {name}: neither a dataset of the config, a known benchmark, {GYM}FAMILY nor a "
        f"file of questions{nearest(name, known)}; there are {', '.join(known)}"
    )


def _in_files(name: str, path: str) -> tuple[str, dict[str, Any]]:
    """A known benchmark in a folder or file of the user's, or a file of other questions."""
    place = resolve(path, ".")
    if name in tasks():
        return name, _outside({"kind": "task", "name": name, "path": place})
    return name, _outside({"kind": "files", "test": place})


def _outside(source: dict[str, Any]) -> dict[str, Any]:
    """Nothing is trained on, so its train split is not even read."""
    return {"source": source, "domain": "out_of_domain"}


def _plain(name: str) -> str:
    """A name as a dataset may have it."""
    return re.sub(r"[^a-z0-9_]+", "_", name.casefold()).strip("_") or "questions"
