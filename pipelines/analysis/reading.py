"""Reads a stored run into the tables of `pipelines.analysis.tables`.

Of the paths only the short columns are read, file by file, so that a million paths take about
200 MB. Works on steps that are not finished, with the rows that they have so far.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.errors import DamagedFileError, InputError
from cluster.store.folder import BROKEN_PARQUET, Folder
from cluster.store.ledger import Ledger
from cluster.terminal import format_table
from evaluation.grader import GRADER_VERSION
from evaluation.predictions import Prediction
from pipelines.analysis import tables
from pipelines.analysis.overview import current_ledger
from pipelines.analysis.reliability import guideline_reliability
from pipelines.analysis.row_batches import row_batches
from pipelines.rounds.measures import measure_paths
from pipelines.stored_run import StoredRun
from pipelines.synthesis.stages import PATH

COMPARED_QUESTIONS = 200
"""Of each round and dataset, whose texts are compared: to compare words takes long."""
_ROW_COLUMNS = ("question_id", "dataset", "kind", "round")
_PATH_LEAVES = {
    *("path_id", "guideline_id", "pass", "verdict", "read_as", "predicted", "error"),
    *("generations.stage", "generations.finish_reason", "generations.num_tokens"),
}
_PATHS_STEP = re.compile(r"round_(\d+)/paths-[^/]+")
_LEVELS = ("list", "element", "item")
"""Parts of the name of a nested Parquet column that are no names of fields."""


def analysis_tables(run: StoredRun) -> dict[str, pa.Table]:
    """Every table, by name; without paths or predictions, their tables are empty.

    Raises `InputError` for a run that has no path so far, or whose questions are not finished, and
    `DamagedFileError`.
    """
    run.check()
    paths = all_paths(run)
    if not paths.num_rows:
        raise InputError(f"the run {run.folder.uri} has no reasoning path so far; run it first")
    changed = _changed_questions(run)
    return tables_of_paths(run, paths) | {
        "changes": tables.changes(changed),
        "changed_questions": changed,
    }


def all_paths(run: StoredRun) -> pa.Table:
    """The paths of all rounds as rows of `PATHS_TABLE`. Raises `DamagedFileError`."""
    return pa.concat_tables([tables.PATHS_TABLE.empty_table(), *read_paths(run).values()])


def tables_of_paths(run: StoredRun, paths: pa.Table) -> dict[str, pa.Table]:
    """The tables that are made of a run's paths; empty ones where it has none."""
    facts, settings = _examples_facts(run), run.config.get("examples") or {}
    selections = {number: (of_round, settings) for number, of_round in facts.items()}
    return {
        "funnel": tables.funnel(paths, _num_questions(run), facts),
        "filters": tables.filters(paths, selections),
        "guideline_yield": tables.guideline_yield(paths),
        "guideline_credit": tables.guideline_credit(paths),
        "guideline_reliability": guideline_reliability(paths),
        "coverage": tables.coverage(paths),
        "diversity": tables.diversity(paths, unlike_texts(run)),
        "lengths": tables.lengths(paths),
        "unsolved_questions": tables.unsolved_questions(paths),
    }


def unlike_texts(run: StoredRun) -> dict[tuple[int, str], float]:
    """By round and dataset, how unlike two paths of a question are in their words: 1 minus their
    similarity, on the first `COMPARED_QUESTIONS`. Raises `DamagedFileError`."""
    found = {}
    for name in run.steps:
        if match := _PATHS_STEP.fullmatch(name):
            for dataset, ledger in _by_dataset(current_ledger(run.folder.child(name))):
                paths = [row["paths"] or () for rows in row_batches(ledger) for row in rows]
                if (unlike := measure_paths(paths)["diversity"]) is not None:
                    found[int(match[1]), dataset] = unlike
    return found


def _by_dataset(ledger: Ledger) -> Iterator[tuple[str, Ledger]]:
    """The first questions of each dataset."""
    names = ledger.index.column("dataset")
    for dataset in pc.unique(names).to_pylist():
        own = ledger.index.filter(pc.equal(names, dataset))
        yield dataset, replace(ledger, index=own.slice(0, COMPARED_QUESTIONS))


def read_paths(run: StoredRun) -> dict[int, pa.Table]:
    """The paths of each round as rows of `PATHS_TABLE`, with the verdicts they were stored with.

    Raises `DamagedFileError`.
    """
    found = ((name, _PATHS_STEP.fullmatch(name)) for name in run.steps)
    return {
        int(match[1]): _paths_of(current_ledger(run.folder.child(name)))
        for name, match in found
        if match
    }


def _paths_of(ledger: Ledger) -> pa.Table:
    files = [
        path_table(_read_short(ledger.folder, part.files[number]).take(rows))
        for part in ledger.split()
        for number, rows in [_places(part)]
    ]
    return pa.concat_tables([tables.PATHS_TABLE.empty_table(), *files])


def _places(part: Ledger) -> tuple[int, pa.ChunkedArray]:
    """The file that a part of a ledger reads, and its rows."""
    return part.index.column("file")[0].as_py(), part.index.column("row")


def _read_short(folder: Folder, name: str) -> pa.Table:
    """The short columns of a file of paths. Raises `DamagedFileError`."""
    try:
        file = folder.open_parquet(name)
        return file.read(columns=_short_columns(file.schema), use_threads=False)
    except BROKEN_PARQUET as error:
        why = " ".join(str(error).split())[:200]
        raise DamagedFileError(f"{folder.uri}/{name} is damaged ({why})") from error


def _short_columns(schema: pq.ParquetSchema) -> list[str]:
    """The Parquet names of the columns that are wanted, as far as the file has them."""
    names = [schema.column(number).path for number in range(len(schema))]
    return [name for name in names if name in _ROW_COLUMNS or _leaf(name) in _PATH_LEAVES]


def _leaf(name: str) -> str | None:
    """`generations.stage` for `paths.list.element.generations.list.element.stage`."""
    first, *rest = name.split(".")
    return ".".join(part for part in rest if part not in _LEVELS) if first == "paths" else None


def path_table(rows: pa.Table) -> pa.Table:
    """Ledger rows with their paths as `PATHS_TABLE`, a row for each path."""
    rows = rows.combine_chunks()
    nested = rows.column("paths").combine_chunks()
    paths, parents = pc.list_flatten(nested), pc.list_parent_indices(nested)
    size = len(paths)

    def of_row(name: str, missing: str | int) -> pa.Array:
        if name not in rows.column_names:
            return pa.array([missing] * size)
        return pc.fill_null(rows.column(name).take(parents), missing).combine_chunks()

    def of_path(name: str, kind: pa.DataType) -> pa.Array:
        has = paths.type.get_field_index(name) >= 0
        return pc.struct_field(paths, name) if has else pa.nulls(size, kind)

    tokens, path_tokens, finished = _of_generations(of_path("generations", pa.null()), size)
    columns = {
        "round": of_row("round", 0),
        "question_id": of_row("question_id", ""),
        "dataset": of_row("dataset", ""),
        "kind": of_row("kind", ""),
        "path_id": of_path("path_id", pa.string()),
        "guideline_id": of_path("guideline_id", pa.string()),
        "is_retry": pc.fill_null(pc.greater(of_path("pass", pa.int32()), 0), False),
        "verdict": pc.fill_null(of_path("verdict", pa.string()), ""),
        "read_as": of_path("read_as", pa.string()),
        "predicted": of_path("predicted", pa.string()),
        "is_finished": finished,
        "is_failed": pc.not_equal(pc.fill_null(of_path("error", pa.string()), ""), ""),
        "num_tokens": tokens,
        "num_path_tokens": path_tokens,
    }
    return pa.table([columns[f.name] for f in tables.PATHS_TABLE], tables.PATHS_TABLE.names).cast(
        tables.PATHS_TABLE
    )


def _of_generations(generations: pa.Array, size: int) -> tuple[pa.Array, pa.Array, pa.Array]:
    """For each path the tokens of all its generations, those of the last stage, and whether the
    last stage ended by itself."""
    tokens, path_tokens = np.zeros(size, np.int64), np.zeros(size, np.int64)
    finished = np.zeros(size, bool)
    if not pa.types.is_null(generations.type) and len(generations):
        made, path = pc.list_flatten(generations), pc.list_parent_indices(generations).to_numpy()
        counts = pc.fill_null(pc.struct_field(made, "num_tokens"), 0).to_numpy()
        is_last = _equals(made, "stage", PATH.name)
        np.add.at(tokens, path, counts)
        np.add.at(path_tokens, path[is_last], counts[is_last])
        np.logical_or.at(finished, path, is_last & _equals(made, "finish_reason", "stop"))
    return pa.array(tokens), pa.array(path_tokens), pa.array(finished)


def _equals(structs: pa.Array, name: str, value: str) -> np.ndarray:
    same = pc.fill_null(pc.equal(pc.struct_field(structs, name), value), False)
    return np.asarray(same.to_numpy(zero_copy_only=False), bool)


# --- what else the tables are made of ----------------------------------------------------------


def _num_questions(run: StoredRun) -> dict[str, int]:
    step = run.step("questions")
    manifest = step.manifest()
    if manifest is None:
        raise InputError(
            f"the step {step.uri} is not finished, so the questions cannot be counted; repeat "
            "`regenesis.py run CONFIG`, which finishes it"
        )
    counts = manifest.get("counts", ())
    return {each["dataset"]: each["num_kept"] for each in counts if each["split"] == "train"}


def _examples_facts(run: StoredRun) -> Mapping[int, Mapping[str, object]]:
    """The manifest of the examples of each round; none for one that is not finished."""
    found = {}
    for name in run.steps:
        if (match := _PATHS_STEP.fullmatch(name)) and (step := run.beside(name, "examples")):
            found[int(match[1])] = step.manifest() or {}
    return found


def _changed_questions(run: StoredRun) -> pa.Table:
    """The changes from the base to each tuned model."""
    names = [name for name in run.steps if posixpath.basename(name).startswith("predictions-")]
    base_name = next((name for name in names if name.startswith("base/")), None)
    base = _predictions(run, base_name) if base_name else {}
    changed = [
        tables.changed_questions(base, _predictions(run, name), name.rpartition("-")[0])
        for name in names
        if name != base_name
    ]
    return pa.concat_tables(changed) if changed else tables.changed_questions({}, {}, "")


def _predictions(run: StoredRun, step: str) -> dict[str, Prediction]:
    """A model's answers, judged by today's grader, by question."""
    rows = current_ledger(run.folder.child(step)).rows()
    return {row["question_id"]: Prediction.from_row(row).graded() for row in rows}


# --- text --------------------------------------------------------------------------------------

_SHORT = (
    "funnel",
    "filters",
    "guideline_reliability",
    "coverage",
    "diversity",
    "lengths",
    "changes",
)
_MOST_ROWS = 40
_ORDER = {"guideline_yield": "shrunk_share", "guideline_credit": "credit"}
"""The column by which a long table is sorted, from the largest."""
_TITLES = {
    "funnel": "Questions, paths and examples, and why paths were dropped",
    "filters": "Paths that are left after each filter, in their order",
    "guideline_yield": "Share of right paths of each guideline, best first",
    "guideline_credit": "Questions that each guideline solved, and those it alone solved",
    "guideline_reliability": "Whether other questions would rank the guidelines alike",
    "coverage": "Share of questions that k of their paths solve, and their different answers",
    "diversity": "How unlike the paths of a question are, in answers and in words",
    "lengths": "Tokens of the solutions, and how many were cut off",
    "unsolved_questions": "Questions that no path answered rightly",
    "changes": "Held-out questions that the tuned model gained and lost",
    "changed_questions": "Held-out questions whose strict reading changed",
}


def format_analysis(found: Mapping[str, pa.Table]) -> str:
    """The tables as text; of a long table the first rows, and how many there are."""
    return "\n\n".join(
        f"## {_TITLES[name]}\n\n{_format_one(name, table)}" for name, table in found.items()
    )


def _format_one(name: str, table: pa.Table) -> str:
    if name == "changed_questions":
        table = table.filter(pc.is_in(table.column("strict"), pa.array(["gained", "lost"])))
    if name in _ORDER:
        table = table.sort_by([(_ORDER[name], "descending")])
    if not table.num_rows:
        return "none"
    shown = table if name in _SHORT else table.slice(0, _MOST_ROWS)
    rows = [table.column_names, *(list(map(_cell, row.values())) for row in shown.to_pylist())]
    left = table.num_rows - shown.num_rows
    more = f"\n\n{left:,} more rows are in the Parquet file" if left else ""
    return f"{format_table(rows)}{more}"


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return " ".join(str(value).split()) if value is not None else ""


def unfinished_note(run: StoredRun) -> Iterator[str]:
    """A sentence if steps are not finished, since the tables then count a part only."""
    names = [name for name in run.steps if run.folder.child(name).manifest() is None]
    if names:
        unfinished = ", ".join(name.rpartition("-")[0] for name in names)
        yield f"note: not finished so far, and counted as far as they are: {unfinished}"


def grader_note(run: StoredRun) -> Iterator[str]:
    """A sentence where paths were judged by another version of the grader than today's."""
    for name in run.steps:
        if not _PATHS_STEP.fullmatch(name):
            continue
        ledger = current_ledger(run.folder.child(name))
        for file in ledger.files[:1]:
            versions = ledger.folder.open_parquet(file).read(columns=["grader_version"])
            stored = set(versions.column("grader_version").to_pylist())
            if stored - {GRADER_VERSION, None}:
                yield (
                    f"note: {name.rpartition('-')[0]} was judged by version "
                    f"{', '.join(sorted(stored))} of the grader and not by {GRADER_VERSION}; the "
                    "examples and scores are judged anew, these tables of the paths are not"
                )
