"""Pages that are made without a run, for tests of the scripts."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from evaluation.question import Question
from pipelines.report.page import assemble
from pipelines.report.paths.chunks import index_of, pack
from pipelines.report.paths.records import Record, Selected, path_record


def hostile_record(number: int, text: str) -> Record:
    """A path with the text in every field that a model, a dataset or a config can fill."""
    question = Question(
        f"{text}/{number}", text, "train", "in_domain", text, text, "text", kind=text
    )
    stages = ("adapted_guideline", "structure", "reasoning")
    path: dict[str, Any] = {
        "path_id": f"{text}/{number}/path",
        "guideline_id": text,
        "thinking": text,
        "predicted": text,
        "verdict": text,
        "read_as": text,
        "error": text,
        "judged": text,
        "generations": [],
        **dict.fromkeys(stages, text),
    }
    example = {
        "form": text,
        "answer_added": True,
        "num_prompt_tokens": 1,
        "num_learned_tokens": 1,
        "not_learned": text,
        "learned": text,
    }
    row = question.to_row() | {"round": 0, "grader_version": text}
    return path_record(row, path, Selected(text, [example]), text, ())


def write_page(file: Path, records: Iterable[Record], guidelines: dict[str, Any]) -> None:
    """A page with the browser of these records alone."""
    chunks = list(pack(records))
    index = index_of(chunks) | {"guidelines": guidelines, "sample": None}
    file.write_bytes(assemble({"paths": index}, {"paths": [chunk.data for chunk in chunks]}))
