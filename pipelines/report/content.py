"""What the report shows, as JSON values: the runs, the verdict, and tables with a column `run`.

    {"title": "quickstart", "runs": [{"name": "quickstart", ...}], "verdict": [...],
     "tables": {"funnel": {"columns": ["run", "round", ...], "rows": [["quickstart", 0, ...]]}}}

Every number is computed here and not in the page. Works on a run that is not finished, with what it
has so far.
"""

from __future__ import annotations

import math
import posixpath
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cluster.errors import InputError
from cluster.events import read_events
from evaluation.comparison import Comparison
from evaluation.forced_scores import READINGS
from evaluation.model_scores import measure_model, measures_table
from pipelines.analysis import tables
from pipelines.analysis.overview import overview, step_states, working_events
from pipelines.analysis.reading import all_paths, grader_note, tables_of_paths
from pipelines.export.publishing import public_name
from pipelines.report.answers import BASE, ModelAnswers, asked_split, of_domains, read_answers
from pipelines.report.arms import (
    arms_of,
    claims_over_seeds,
    partners_of,
    quantities_over_seeds,
)
from pipelines.report.comparisons import Declared, compared, declared_comparisons, detectable
from pipelines.report.execution import cost_rows, rate_rows, step_rows, training_rows
from pipelines.report.paths.parts import distinct_names
from pipelines.report.provenance import provenance, setting_differences
from pipelines.report.rounds import decisions, round_rows
from pipelines.report.verdict import claims_of, judge
from pipelines.stored_run import StoredRun

Row = Mapping[str, Any]
MOST_ROWS = 5_000
"""Of the questions that changed, at most this number is in the file; the rest is counted."""
MOST_LETTERS = 1_000
"""Of a text in a table."""


def report_data(runs: Sequence[StoredRun]) -> dict[str, Any]:
    """The content of a report of these runs. Reads them and changes nothing.

    Raises `InputError` when the same run is given twice, and `DamagedFileError`.
    """
    if len({run.folder.uri for run in runs}) < len(runs):
        raise InputError("a run is given twice; name each run once")
    for run in runs:
        run.check()
    named = distinct_names(runs)
    answers = {name: read_answers(name, run) for name, run in named.items()}
    configs = {name: run.config for name, run in named.items() if answers[name]}
    declared = declared_comparisons(answers, partners_of(configs))
    lines = {reading: compared(declared, reading) for reading in READINGS} if declared else {}
    over_seeds = quantities_over_seeds(arms_of(configs), declared, lines)
    claims = claims_over_seeds(over_seeds) + claims_of(declared, lines)
    found: dict[str, list[Row]] = {}
    for name, run in named.items():
        for table, rows in _tables_of_run(run, answers[name]).items():
            found.setdefault(table, []).extend({"run": name, **row} for row in rows)
    found["comparisons"] = [
        _comparison_row(each, reading, line)
        for reading, of_declared in lines.items()
        for each, of_one in zip(declared, of_declared, strict=True)
        for line in of_one
    ]
    found["arms"] = [row for each in over_seeds for row in each.rows()]
    decided = [row for name, run in named.items() for row in decisions(name, run)]
    of_rounds: dict[str, Sequence[Row]] = {**found, "decisions": decided}
    found["rounds"] = [row for name in named for row in round_rows(name, of_rounds)]
    found["settings"] = list(setting_differences(named)) if len(named) > 1 else []
    return {
        "title": ", ".join(named),
        "made_at": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "split": asked_split(model for models in answers.values() for model in models),
        "readings": _readings(found["measures"]),
        "runs": [_run_facts(name, run) for name, run in named.items()],
        "verdict": judge(claims),
        "decisions": decided,
        "tables": {name: as_columns(rows) for name, rows in found.items()},
    }


def _readings(measures: Iterable[Row]) -> list[str]:
    """The readings that any answers have, in their usual order."""
    known = {row["reading"] for row in measures if row["metric"] == "accuracy"}
    return [reading for reading in READINGS if reading in known]


def _run_facts(name: str, run: StoredRun) -> dict[str, Any]:
    """What the page says of a run in words."""
    facts = overview(run)
    return {
        "name": name,
        "strategy": facts["strategy"],
        "model": public_name(str(facts["model"])) if facts["model"] else None,
        "rounds": facts["rounds"],
        "is_held": facts["holder"]["state"] == "holds",
        "left": facts["left"],
        "num_generated_tokens": facts["num_generated_tokens"],
        "cost": facts["cost"],
        "notes": list(grader_note(run)),
        **provenance(run),
    }


def _tables_of_run(run: StoredRun, models: Sequence[ModelAnswers]) -> dict[str, list[Row]]:
    events = working_events(read_events(run.folder))
    of_paths = tables_of_paths(run, all_paths(run))
    changed = _changed(models)
    return {
        **{name: table.to_pylist() for name, table in of_paths.items()},
        "measures": _measures(models),
        "changes": tables.changes(changed).to_pylist(),
        "changed_questions": _shown_changes(changed),
        "examples": _example_rows(run),
        "steps": list(step_rows(step_states(run), events)),
        "costs": list(cost_rows(events)),
        "rates": list(rate_rows(events)),
        "training": list(training_rows(events)),
    }


def _measures(models: Sequence[ModelAnswers]) -> list[Row]:
    found: list[Row] = []
    for each in models:
        measures = measure_model(each.model, of_domains(each.predictions, each.tuned_on))
        found += [{"round": each.round, **row} for row in measures_table(measures).to_pylist()]
    return found


def _changed(models: Sequence[ModelAnswers]) -> pa.Table:
    """The questions whose verdict changed from the base to each tuned model."""
    base = next((each for each in models if each.model == BASE), None)
    found = [tables.changed_questions({}, {}, "")]
    for tuned in models if base else ():
        if tuned.round is not None and base is not None:
            before, after = (
                {p.question.question_id: p for p in of_domains(m.predictions, tuned.tuned_on)}
                for m in (base, tuned)
            )
            found.append(tables.changed_questions(before, after, tuned.model))
    return pa.concat_tables(found)


def _shown_changes(changed: pa.Table) -> list[Row]:
    moved = pa.array(["gained", "lost"])
    of_any = [pc.is_in(changed.column(reading), moved) for reading in ("strict", "tolerant")]
    rows: list[Row] = changed.filter(pc.or_(*of_any)).slice(0, MOST_ROWS).to_pylist()
    return rows


def _example_rows(run: StoredRun) -> list[Row]:
    """What the manifest of the examples of each round says of each dataset."""
    rows: list[Row] = []
    for step in run.steps:
        if not posixpath.basename(step).startswith("examples-"):
            continue
        manifest = run.folder.child(step).manifest() or {}
        for dataset, facts in (manifest.get("datasets") or {}).items():
            overlaps = facts.get("overlaps_with") or {}
            rows.append(
                {
                    "step": step.rpartition("-")[0],
                    "dataset": dataset,
                    "num_paths": facts.get("num_paths"),
                    "num_kept_paths": facts.get("num_kept_paths"),
                    "num_examples": facts.get("num_examples"),
                    "expected_lucky_share": facts.get("expected_lucky_share"),
                    "overlaps": ", ".join(f"{n}: {number}" for n, number in overlaps.items()),
                }
            )
    return rows


def _comparison_row(declared: Declared, reading: str, line: Comparison) -> Row:
    return {
        "comparison": declared.name,
        "kind": declared.kind,
        "run": declared.other.run,
        "first": declared.first.model,
        "other": declared.other.model,
        "split": declared.split,
        "reading": reading,
        "group": line.group,
        "task": line.task,
        "num_pairs": line.num_pairs,
        "first_share": line.first_share.value,
        "other_share": line.other_share.value,
        "difference": line.difference.value,
        "low": line.difference.low,
        "high": line.difference.high,
        "gained": line.gained,
        "lost": line.lost,
        "p_value": line.p_value,
        "adjusted": line.adjusted,
        "detectable": detectable(line.difference),
    }


def as_columns(rows: Iterable[Row]) -> dict[str, Any]:
    """Rows as `{columns, rows}`; what JSON cannot hold (infinite, not a number) becomes null, and a
    text of more than `MOST_LETTERS` is cut, since a table has it many times."""
    found = list(rows)
    columns = list(dict.fromkeys(name for row in found for name in row))
    return {"columns": columns, "rows": [[_plain(row.get(c)) for c in columns] for row in found]}


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    if isinstance(value, str) and len(value) > MOST_LETTERS:
        return f"{value[:MOST_LETTERS]}\N{HORIZONTAL ELLIPSIS}"
    return value
