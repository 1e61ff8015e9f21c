"""Paths that a person found to be badly reasoned, so that nothing is learned from them.

`examples.vetoes` names a file of judgements, as `regenesis judge-import` writes it. A veto is for a
path and its text: a path of another run that has the same id is not meant.
"""

from __future__ import annotations

import hashlib
import posixpath
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cluster.errors import DamagedFileError, InputError
from cluster.settings import fingerprint
from cluster.store.named import folder_to_read, split_address
from evaluation.question import Question
from pipelines.synthesis.reasoning_path import ReasoningPath

JUDGEMENTS_SCHEMA = pa.schema(
    [
        ("path_id", pa.string()),
        ("text_fingerprint", pa.string()),
        ("question_id", pa.string()),
        ("dataset", pa.string()),
        ("verdict", pa.string()),  # the grader's, when the judgement was read back
        ("valid", pa.string()),  # yes, no or unsure
        ("note", pa.string()),
        ("judge", pa.string()),
        ("sheet", pa.string()),
    ]
)
"""A row for each path that a person judged."""
VALID = ("yes", "no", "unsure")
"""Whether the reasoning of a path is valid."""


def text_fingerprint(question: Question, path: ReasoningPath) -> str:
    """16 hex digits over the question as the path was shown it, and the solution."""
    content = f"{path.shown_question(question).text}\x1f{path.reasoning}"
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Vetoes:
    """The paths whose reasoning a person found invalid."""

    path: str
    """As the setting has it; another path of the same judgements is the same."""
    paths: frozenset[tuple[str, str]]
    """Their ids with the fingerprints of their texts."""

    def __str__(self) -> str:
        return self.path

    @property
    def content(self) -> str | None:
        """What decides the results, for the fingerprint of a step; None without any veto."""
        return fingerprint(sorted(self.paths)) if self.paths else None

    def rejects(self, question: Question, path: ReasoningPath) -> bool:
        """Whether a person found this path's reasoning invalid."""
        return (path.path_id, text_fingerprint(question, path)) in self.paths

    @classmethod
    def read(cls, given: str) -> Vetoes:
        """The vetoes of a file of judgements. Raises `InputError` for another file."""
        place, name = split_address(given)
        folder = folder_to_read("examples.vetoes", place)
        try:
            table = folder.read_parquet(name)
        except DamagedFileError as error:
            raise InputError(f"{error}; give a file that `judge-import` wrote") from error
        except OSError as error:
            raise InputError(f"{given} cannot be read ({error}); correct the path") from error
        return cls(given, vetoed_in(table, given))


def vetoed_in(table: pa.Table, name: str) -> frozenset[tuple[str, str]]:
    """The paths of a table of judgements that are not valid. Raises `InputError` for another."""
    columns = ["path_id", "text_fingerprint", "valid"]
    if missing := [column for column in columns if column not in table.column_names]:
        raise InputError(
            f"{name} is no table of judgements (it has no column {missing[0]}); give a file that "
            "`judge-import` wrote"
        )
    rejected = table.filter(pc.equal(table.column("valid"), "no")).select(columns[:2])
    return frozenset((row["path_id"], row["text_fingerprint"]) for row in rejected.to_pylist())


def read_vetoes(given: Any) -> Vetoes | None:
    """The value of the setting. Raises `ValueError`, as validators do."""
    if given is None or isinstance(given, Vetoes):
        return given
    if not isinstance(given, str) or not posixpath.basename(given):
        raise ValueError("vetoes are named as a file that `judge-import` wrote")
    return Vetoes.read(given)
