"""The blinded sheet: paths whose reasoning a person judges, without knowing what became of them.

    {"sheet": "3f2ac81d09be", "items": [{"id": "9c...", "fingerprint": "5a...",
                                         "question": "A shop ...", "reasoning": "In May ..."}]}

Half of the paths are right and half are not, as far as there are as many; they are in a random
order. The ids are hashes, since the id of a path names its guideline.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cluster.errors import InputError
from cluster.settings import fingerprint
from evaluation.grader import Verdict
from evaluation.question import Question
from pipelines.analysis import tables
from pipelines.analysis.lineage import steps_of
from pipelines.analysis.overview import current_ledger
from pipelines.analysis.reading import read_paths
from pipelines.analysis.row_batches import row_batches
from pipelines.selection.vetoes import text_fingerprint
from pipelines.stored_run import StoredRun
from pipelines.synthesis.reasoning_path import ReasoningPath
from pipelines.synthesis.seeds import stable_seed


@dataclass(frozen=True, slots=True)
class JudgedPath:
    """A path that is on a sheet."""

    question: Question
    path: ReasoningPath

    @property
    def blind_id(self) -> str:
        return blind_id(self.path.path_id)

    @property
    def fingerprint(self) -> str:
        return text_fingerprint(self.question, self.path)

    def item(self) -> dict[str, str]:
        """What the sheet shows."""
        return {
            "id": self.blind_id,
            "fingerprint": self.fingerprint,
            "question": self.path.shown_question(self.question).text,
            "reasoning": self.path.reasoning,
        }


def blind_id(path_id: str) -> str:
    """16 hex digits that stand for a path."""
    return hashlib.sha256(f"judged\x1f{path_id}".encode()).hexdigest()[:16]


def make_sheet(run: StoredRun, number: int, seed: int) -> dict[str, Any]:
    """A sheet of at most so many paths, drawn by the seed. Raises `InputError` for a run without
    a finished path."""
    chosen = draw_paths(run, number, seed)
    found = {each.path.path_id: each for each in judged_paths(run, chosen)}
    items = [found[path_id].item() for path_id in chosen if path_id in found]
    return {"sheet": sheet_id((i["id"], i["fingerprint"]) for i in items), "items": items}


def sheet_id(items: Iterator[tuple[str, str]] | Sequence[tuple[str, str]]) -> str:
    """What names a sheet: its paths and their texts."""
    return fingerprint(sorted(items))


def draw_paths(run: StoredRun, number: int, seed: int) -> list[str]:
    """The ids of the paths for a sheet, in its order."""
    paths = pa.concat_tables([tables.PATHS_TABLE.empty_table(), *read_paths(run).values()])
    paths = paths.filter(pc.and_(paths.column("is_finished"), pc.invert(paths.column("is_failed"))))
    is_right = pc.equal(paths.column("verdict"), str(Verdict.CORRECT))
    drawn = [
        sorted(ids.to_pylist(), key=lambda path_id: stable_seed(seed, path_id))
        for ids in (
            paths.filter(is_right).column("path_id"),
            paths.filter(pc.invert(is_right)).column("path_id"),
        )
    ]
    right, other = drawn
    num_right = min(len(right), max(number // 2, number - len(other)))
    chosen = right[:num_right] + other[: number - num_right]
    if not chosen:
        raise InputError(
            f"the run {run.folder.uri} has no finished path to judge so far; run it first"
        )
    return sorted(chosen, key=lambda path_id: stable_seed(seed, "order", path_id))


def judged_paths(run: StoredRun, path_ids: Sequence[str]) -> Iterator[JudgedPath]:
    """The paths with these ids. Only the rows of their questions are read."""
    wanted = set(path_ids)
    question_ids = pa.array(sorted(_questions_of(run, wanted)), pa.string())
    for step in steps_of(run, "paths"):
        ledger = current_ledger(run.folder.child(step))
        of_these = pc.is_in(ledger.index.column("question_id"), question_ids)
        for rows in row_batches(replace(ledger, index=ledger.index.filter(of_these))):
            for row in rows:
                found = [path for path in row["paths"] or () if path["path_id"] in wanted]
                for path in found:
                    yield JudgedPath(Question.from_row(row), ReasoningPath.from_row(path))


def _questions_of(run: StoredRun, path_ids: set[str]) -> set[str]:
    found: set[str] = set()
    for paths in read_paths(run).values():
        mine = pc.is_in(paths.column("path_id"), pa.array(sorted(path_ids), pa.string()))
        found |= set(paths.filter(mine).column("question_id").to_pylist())
    return found


def path_ids_of(run: StoredRun, blind_ids: set[str]) -> dict[str, str]:
    """The paths of the run that blind ids stand for, by blind id."""
    return {
        blind_id(path_id): path_id
        for paths in read_paths(run).values()
        for path_id in paths.column("path_id").to_pylist()
        if blind_id(path_id) in blind_ids
    }
