"""The general reasoning guidelines and the prompts, from this project or from the user."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.errors import InputError
from cluster.settings import read_yaml
from pipelines.synthesis.stages import PATH, STAGES

GUIDELINES_FILE = Path(__file__).with_name("guidelines.yaml")
PLACEBO = "placebo"
"""The name of the guidelines in `PLACEBO_FILE`, which say nothing about how to answer."""
PLACEBO_FILE = Path(__file__).with_name("placebo_guidelines.yaml")
PROMPTS_FILE = Path(__file__).with_name("prompts.yaml")

_OTHER_FIELDS: dict[str, frozenset[str]] = {
    "path_from_advice": frozenset({"question", "adapted_guideline"}),
    "hint": frozenset({"answer"}),
    "judge": frozenset({"question", "reasoning"}),
    "expand": frozenset({"guidelines"}),
}
_NEEDED_FIELDS = {name: stage.fields for name, stage in STAGES.items()} | _OTHER_FIELDS
_FIELDS_OF_STAGES = frozenset(
    {"question", "guideline", "answer_format"}
    | {stage.column for stage in STAGES.values() if stage != PATH}
)
_KNOWN_FIELDS = dict.fromkeys([*STAGES, "path_from_advice"], _FIELDS_OF_STAGES) | {
    name: _OTHER_FIELDS[name] for name in ("hint", "judge", "expand")
}


@dataclass(frozen=True, slots=True)
class Guideline:
    """One general piece of advice; its id is part of the id of every path that follows it."""

    guideline_id: str
    text: str


@dataclass(frozen=True, slots=True)
class Prompts:
    """The user turns of the stages and of the model's other tasks, with fields in braces.

    They are keyed by the name of the stage, and `path_from_advice` (the last stage in a chain
    without structure), `hint` (appended to the turn of a stage that is shown the right answer),
    `judge` (asks whether a finished path is sound) and `expand` (asks for one more guideline).
    """

    texts: Mapping[str, str]

    def __getitem__(self, name: str) -> str:
        return self.texts[name]

    def of_paths(self, chain: Sequence[str]) -> dict[str, str]:
        """The prompts that a path of this chain may use."""
        unused = {s.name for s in STAGES.values() if s.came_later and s.name not in chain}
        return {name: text for name, text in self.texts.items() if name not in unused | {"expand"}}


def guidelines_file(name: str | None) -> Path:
    """The file that `synthesis.guidelines` names: ours, the placebos, or the user's."""
    if name is None:
        return GUIDELINES_FILE
    return PLACEBO_FILE if name == PLACEBO else Path(name)


def load_guidelines(path: Path = GUIDELINES_FILE) -> tuple[Guideline, ...]:
    """The guidelines of a YAML file: a list of `{id, text}`. Raises `InputError`."""
    return check_guidelines(read_yaml(path, "synthesis.guidelines"), str(path))


def check_guidelines(rows: Any, path: str) -> tuple[Guideline, ...]:
    """The guidelines in a parsed YAML file. Raises `InputError` naming the `path`."""
    if not isinstance(rows, list) or not rows:
        raise InputError(f"{path}: expected a list of guidelines, each with `id` and `text`")
    guidelines = tuple(_read_guideline(path, number, row) for number, row in enumerate(rows, 1))
    ids = [guideline.guideline_id for guideline in guidelines]
    for guideline_id in ids:
        if ids.count(guideline_id) > 1:
            raise InputError(f"{path}: the guideline id {guideline_id!r} is given twice")
    return guidelines


def _read_guideline(path: str, number: int, row: Any) -> Guideline:
    if not isinstance(row, dict) or set(row) != {"id", "text"}:
        raise InputError(f"{path}: guideline {number} needs exactly `id` and `text`")
    guideline_id, text = row["id"], row["text"]
    if not isinstance(guideline_id, str) or not guideline_id or "/" in guideline_id:
        raise InputError(f"{path}: guideline {number}: the id must be a word without a slash")
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{path}: guideline {guideline_id!r} has no text")
    return Guideline(guideline_id, text.strip())


def load_prompts(path: Path = PROMPTS_FILE) -> Prompts:
    """The prompts of a YAML file; those that it leaves out are ours.

    Raises `InputError`.
    """
    tree = read_yaml(path, "synthesis.prompts")
    known = ", ".join(_NEEDED_FIELDS)
    if not isinstance(tree, dict) or not tree:
        raise InputError(f"{path}: expected prompts as `name: text`; the names are {known}")
    for name in tree:
        if name not in _NEEDED_FIELDS:
            raise InputError(f"{path}: there is no prompt {name!r}; the names are {known}")
    for name, text in tree.items():
        _check_prompt(path, name, text)
    ours = {} if path == PROMPTS_FILE else load_prompts().texts
    return Prompts({**ours, **{name: text.strip() for name, text in tree.items()}})


def _check_prompt(path: Path, stage: str, text: Any) -> None:
    if not isinstance(text, str):
        raise InputError(f"{path}: the prompt {stage} is not text")
    try:
        fields = {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}
    except ValueError as error:
        raise InputError(
            f"{path}: the prompt {stage}: {error}; write {{{{ for a plain brace"
        ) from error
    known_fields = _KNOWN_FIELDS[stage]
    if unknown := fields - known_fields:
        known = ", ".join(sorted(known_fields))
        raise InputError(f"{path}: the prompt {stage} has {{{min(unknown)}}}; known: {known}")
    if lacking := _NEEDED_FIELDS[stage] - fields:
        raise InputError(f"{path}: the prompt {stage} lacks {{{min(lacking)}}}")
