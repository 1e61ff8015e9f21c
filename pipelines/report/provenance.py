"""How a run was made: its settings and how they differ between runs, prompts, versions, commands.

Keys and passwords are taken out, and of each path only its last part stays.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from cluster.store.step import content_of_step
from pipelines.analysis.lineage import guideline_texts, steps_of
from pipelines.export.publishing import redacted
from pipelines.stored_run import StoredRun

_MISSING = "(not set)"


def setting_differences(runs: Mapping[str, StoredRun]) -> list[dict[str, str]]:
    """The settings in which the runs differ, with the value of each run by its name."""
    flat = {name: dict(_flat(run.config)) for name, run in runs.items()}
    keys = list(dict.fromkeys(key for each in flat.values() for key in each))
    rows = [(key, {name: _shown(flat[name].get(key, _MISSING)) for name in flat}) for key in keys]
    return [{"setting": key, **values} for key, values in rows if len(set(values.values())) > 1]


def _flat(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{name}.")
        else:
            yield name, value


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    return redacted(str(value).lower() if isinstance(value, bool) else str(value))


def provenance(run: StoredRun) -> dict[str, Any]:
    """The settings as YAML, the prompts and guidelines of the first round, versions, commands."""
    manifests = [run.folder.child(name).manifest() or {} for name in run.steps]
    versions: Mapping[str, Any] = next(
        (m["versions"] for m in reversed(manifests) if m.get("versions")), {}
    )
    paths = steps_of(run, "paths")[:1]
    content = content_of_step(run.folder.child(paths[0])) if paths else {}
    guidelines = guideline_texts(run, paths[0]) if paths else {}
    return {
        "config": redacted(yaml.safe_dump(dict(run.config), sort_keys=False)),
        "versions": {str(name): str(number) for name, number in versions.items()},
        "commands": [redacted(command) for command in run.commands()],
        "prompts": [
            {"name": str(name), "text": str(text)}
            for name, text in (content.get("prompts") or {}).items()
        ],
        "guidelines": [
            {"guideline_id": str(name), "text": str(text)} for name, text in guidelines.items()
        ],
    }
