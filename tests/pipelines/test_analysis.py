"""The tables behind a report, against recounts that go the simplest way."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from evaluation.predictions import Prediction
from evaluation.question import Question
from evaluation.scores import is_correct
from pipelines.analysis import tables
from pipelines.analysis.reading import path_table
from pipelines.synthesis.handler import PATHS_SCHEMA

ANSWERS = {"correct": "77", "wrong": "56"}
"""Of each verdict two answers: a right one may be written in two ways."""
GUIDELINES = ("plan", "check", "guess", "draw")


def stored_rows() -> list[dict[str, Any]]:
    """Ledger rows of 12 questions of two datasets with 4 to 5 drawn paths each."""
    random = np.random.default_rng(7)
    rows = []
    for number in range(12):
        dataset = "sums" if number % 3 else "words"
        question_id = f"{dataset}/train/{number:02d}"
        paths = [
            stored_path(question_id, GUIDELINES[place % 4], place, random)
            for place in range(4 + number % 2)
        ]
        rows.append(
            {
                "question_id": question_id,
                "dataset": dataset,
                "kind": "hard" if number % 2 else "",
                "round": 0,
                "paths": paths,
            }
        )
    return [*rows, rows[0] | {"question_id": "sums/train/none", "dataset": "sums", "paths": []}]


def stored_path(
    question_id: str, guideline_id: str, sample: int, random: np.random.Generator
) -> dict[str, Any]:
    verdict = str(random.choice(["correct", "wrong", "wrong", "no_answer", "error"]))
    failed = verdict == "error"
    stages = ["adapt", "path"][: 1 if failed else 2]
    reasons = ["stop", str(random.choice(["stop", "length"]))]
    return {
        "path_id": f"0/regenesis/{question_id}/{guideline_id}/0/{sample}",
        "guideline_id": guideline_id,
        "pass": int(random.random() < 0.2),
        "verdict": verdict,
        "read_as": None if failed else "nothing" if verdict == "no_answer" else "boxed",
        "predicted": ANSWERS[verdict][sample % 2] if verdict in ANSWERS else None,
        "error": "refused" if failed else None,
        "generations": [
            {"stage": stage, "finish_reason": reason, "num_tokens": int(random.integers(1, 99))}
            for stage, reason in zip(stages, reasons, strict=False)
        ],
    }


ROWS = stored_rows()
PATHS = path_table(pa.Table.from_pylist(ROWS, schema=PATHS_SCHEMA))


def flat(*, hinted: bool = True) -> list[dict[str, Any]]:
    """Every path with its question's columns."""
    return [
        path | {name: row[name] for name in ("question_id", "dataset", "kind")}
        for row in ROWS
        for path in row["paths"]
        if hinted or not path["pass"]
    ]


def test_path_table_has_each_path_once_with_its_tokens() -> None:
    found = PATHS.to_pylist()
    for row, path in zip(found, flat(), strict=True):
        last = [made for made in path["generations"] if made["stage"] == "path"]
        assert row["path_id"] == path["path_id"]
        assert row["question_id"] == path["question_id"]
        assert row["num_tokens"] == sum(made["num_tokens"] for made in path["generations"])
        assert row["num_path_tokens"] == sum(made["num_tokens"] for made in last)
        assert row["is_finished"] == any(made["finish_reason"] == "stop" for made in last)
        assert row["is_failed"] == bool(path["error"])


def test_rows_without_paths_or_later_columns_are_read() -> None:
    assert path_table(pa.Table.from_pylist(ROWS[-1:], schema=PATHS_SCHEMA)).num_rows == 0
    short = [{"question_id": "q", "dataset": "d", "paths": [{"path_id": "p", "verdict": "wrong"}]}]
    [row] = path_table(pa.Table.from_pylist(short)).to_pylist()
    assert (row["kind"], row["guideline_id"], row["is_finished"]) == ("", None, False)


def test_guideline_yield_is_a_recount() -> None:
    tries: Counter[tuple[str, str, str]] = Counter()
    right: Counter[tuple[str, str, str]] = Counter()
    for path in flat(hinted=False):
        key = (path["dataset"], path["kind"], path["guideline_id"])
        tries[key] += 1
        right[key] += path["verdict"] == "correct"
    found = tables.guideline_yield(PATHS).to_pylist()
    counts = {
        (r["dataset"], r["kind"], r["guideline_id"]): (r["num_paths"], r["num_right"])
        for r in found
    }
    assert counts == {key: (tries[key], right[key]) for key in tries}
    for row in found:
        group = [key for key in tries if key[:2] == (row["dataset"], row["kind"])]
        mean = sum(right[key] for key in group) / sum(tries[key] for key in group)
        low, high = sorted((mean, row["share"]))
        assert low - 1e-9 <= row["shrunk_share"] <= high + 1e-9
        assert row["low"] <= row["share"] <= row["high"]
        own = [
            path
            for path in flat(hinted=False)
            if all(path[name] == row[name] for name in ("dataset", "kind", "guideline_id"))
        ]
        right_paths = [path for path in own if path["verdict"] == "correct"]
        if right_paths:
            tokens = [path["generations"][-1]["num_tokens"] for path in right_paths]
            assert row["right_tokens"] == pytest.approx(np.mean(tokens))
        else:
            assert row["right_tokens"] is None
        ends = [p["generations"][-1]["finish_reason"] for p in own if not p["error"]]
        expected = ends.count("length") / len(ends) if ends else None
        assert row["cut_off_share"] == (None if expected is None else pytest.approx(expected))


def test_guideline_credit_and_unique_solves_are_a_recount() -> None:
    solvers = defaultdict(set)
    for path in flat(hinted=False):
        if path["verdict"] == "correct":
            solvers[path["dataset"], path["question_id"]].add(path["guideline_id"])
    for row in tables.guideline_credit(PATHS).to_pylist():
        mine = [
            by
            for (dataset, _), by in solvers.items()
            if dataset == row["dataset"] and row["guideline_id"] in by
        ]
        assert row["num_solved"] == len(mine)
        assert row["num_solved_alone"] == sum(len(by) == 1 for by in mine)
        assert row["credit"] == pytest.approx(sum(1 / len(by) for by in mine))


def test_unsolved_questions_are_those_without_a_right_path() -> None:
    right = {p["question_id"] for p in flat(hinted=False) if p["verdict"] == "correct"}
    asked = {p["question_id"] for p in flat(hinted=False)}
    found = tables.unsolved_questions(PATHS).to_pylist()
    assert {row["question_id"] for row in found} == asked - right
    for row in found:
        own = [p for p in flat(hinted=False) if p["question_id"] == row["question_id"]]
        assert row["num_paths"] == len(own)
        assert row["num_read"] == sum(p["read_as"] == "boxed" for p in own)


def test_coverage_is_the_mean_over_all_subsets() -> None:
    verdicts = defaultdict(list)
    for path in flat(hinted=False):
        key = (path["dataset"], path["question_id"])
        verdicts[key].append(path["verdict"] == "correct")
    for row in tables.coverage(PATHS).to_pylist():
        chances = [
            np.mean([any(subset) for subset in itertools.combinations(right, row["k"])])
            for (dataset, _), right in verdicts.items()
            if dataset == row["dataset"] and len(right) >= row["k"]
        ]
        assert row["num_questions"] == len(chances)
        assert row["coverage"] == pytest.approx(np.mean(chances))


def _told() -> dict[tuple[str, str], list[str | None]]:
    """The answers of the first pass to each question."""
    found = defaultdict(list)
    for path in flat(hinted=False):
        found[path["dataset"], path["question_id"]].append(path["predicted"])
    return found


def test_different_answers_of_k_paths_are_the_mean_over_all_subsets() -> None:
    for row in tables.coverage(PATHS).to_pylist():
        numbers = [
            np.mean([len({*s} - {None}) for s in itertools.combinations(told, row["k"])])
            for (dataset, _), told in _told().items()
            if dataset == row["dataset"] and len(told) >= row["k"]
        ]
        assert row["num_answers"] == pytest.approx(np.mean(numbers))


def test_diversity_is_the_share_of_pairs_that_differ_and_of_the_commonest_answer() -> None:
    rows = tables.diversity(PATHS, {(0, "sums"): 0.75}).to_pylist()
    assert [row["dataset"] for row in rows] == ["sums", "words"]
    for row in rows:
        read = [
            [answer for answer in told if answer is not None]
            for (dataset, _), told in _told().items()
            if dataset == row["dataset"]
        ]
        several = [told for told in read if len(told) > 1]
        differ = [np.mean([a != b for a, b in itertools.combinations(t, 2)]) for t in several]
        most = [max(Counter(told).values()) / len(told) for told in several]
        assert row["num_questions"] == len(several) > 1
        assert row["answers_differ"] == pytest.approx(np.mean(differ))
        assert row["vote_share"] == pytest.approx(np.mean(most))
    assert [row["texts_differ"] for row in rows] == [0.75, None]


def test_lengths_are_those_of_the_last_stage() -> None:
    found = tables.lengths(PATHS).to_pylist()
    assert sum(row["num_paths"] for row in found) == sum(not p["error"] for p in flat())
    for row in found:
        own = [
            [made for made in p["generations"] if made["stage"] == "path"][-1]
            for p in flat()
            if (p["dataset"], p["verdict"]) == (row["dataset"], row["verdict"]) and not p["error"]
        ]
        assert row["mean_tokens"] == pytest.approx(np.mean([made["num_tokens"] for made in own]))
        assert row["tokens_50"] == pytest.approx(np.median([made["num_tokens"] for made in own]))
        assert row["num_truncated"] == sum(made["finish_reason"] == "length" for made in own)


def test_funnel_narrows_and_ends_with_the_manifest() -> None:
    facts = {"datasets": {"sums": {"dropped": {"wrong": 3}, "num_kept_paths": 2}}}
    found = tables.funnel(PATHS, {"sums": 9, "words": 4}, {0: facts}).to_pylist()
    for dataset, last in (("sums", "examples"), ("words", "right")):
        counts = {r["stage"]: r["number"] for r in found if r["dataset"] == dataset}
        own = [p for p in flat() if p["dataset"] == dataset]
        stopped = [
            p
            for p in own
            if [m for m in p["generations"] if (m["stage"], m["finish_reason"]) == ("path", "stop")]
        ]
        read = [p for p in stopped if p["read_as"] == "boxed"]
        assert counts["paths"] == len(own)
        assert counts["finished"] == len(stopped)
        assert counts["read"] == len(read)
        assert counts["right"] == sum(p["verdict"] == "correct" for p in read)
        assert list(counts)[-1] == last
    assert {r["number"] for r in found if r["stage"] == "questions"} == {9, 4}


def prediction(number: int, text: str) -> Prediction:
    question = Question(f"q{number}", "sums", "test", "in_domain", "?", "3", "number")
    return Prediction(question, response=text, finish_reason="stop").graded()


def test_changes_are_a_recount_of_both_readings() -> None:
    texts = ["\\boxed{3}", "so 3", "\\boxed{4}", "nothing"]
    pairs = list(itertools.product(texts, texts))
    base = {f"q{n}": prediction(n, pair[0]) for n, pair in enumerate(pairs)}
    tuned = {f"q{n}": prediction(n, pair[1]) for n, pair in enumerate(pairs)}
    changed = tables.changed_questions(base, tuned, "round_0/predictions")
    for row in tables.changes(changed).to_pylist():
        tolerant = row["reading"] == "tolerant"
        was = [is_correct(each, tolerant=tolerant) for each in base.values()]
        now = [is_correct(each, tolerant=tolerant) for each in tuned.values()]
        both = list(zip(was, now, strict=True))
        assert row["num_questions"] == len(pairs)
        assert row["gained"] == both.count((False, True))
        assert row["lost"] == both.count((True, False))
        assert row["right"] == both.count((True, True))
        assert row["wrong"] == both.count((False, False))
    assert tables.changes(changed).num_rows == 2


def test_tables_of_no_path_are_empty() -> None:
    empty = tables.PATHS_TABLE.empty_table()
    made = (tables.guideline_yield, tables.guideline_credit, tables.coverage, tables.lengths)
    assert [make(empty).num_rows for make in made] == [0, 0, 0, 0]
    assert tables.unsolved_questions(empty).num_rows == 0
    assert tables.diversity(empty, {}).num_rows == 0
    assert tables.filters(empty, {}).num_rows == 0
