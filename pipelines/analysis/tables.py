"""The tables behind a report: pure functions on Arrow tables.

Most begin with a table of paths (`PATHS_TABLE`), a row for each path that was made::

    {"round": 0, "question_id": "gsm8k/train/00042", "dataset": "gsm8k", "kind": "",
     "path_id": "0/regenesis/...", "guideline_id": "decompose", "is_retry": False,
     "verdict": "correct", "read_as": "boxed", "is_finished": True, "is_failed": False,
     "num_tokens": 412, "num_path_tokens": 180}

A path is right when its verdict is `correct`. Shares lie between 0 and 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from evaluation.grader import ReadAs, Verdict
from evaluation.predictions import Prediction
from evaluation.scores import is_correct
from evaluation.statistics import (
    coverage_by_question,
    exact_mcnemar,
    shapley_credit,
    shrunk_shares,
    wilson_interval,
)
from pipelines.selection.funnel import FINISHED, PATHS, READ, RIGHT, stages_left

PATHS_TABLE = pa.schema(
    [
        ("round", pa.int32()),
        ("question_id", pa.string()),
        ("dataset", pa.string()),
        ("kind", pa.string()),
        ("path_id", pa.string()),
        ("guideline_id", pa.string()),
        ("is_retry", pa.bool_()),  # of a later pass, with or without the answer shown
        ("verdict", pa.string()),
        ("read_as", pa.string()),
        ("predicted", pa.string()),  # the answer that was read
        ("is_finished", pa.bool_()),
        ("is_failed", pa.bool_()),
        ("num_tokens", pa.int32()),  # in all stages
        ("num_path_tokens", pa.int32()),  # in the last stage
    ]
)
Selected = tuple[Mapping[str, Any], Mapping[str, Any]]
"""The manifest of the examples of a round, empty if they are not finished, and their settings."""
PLAIN = "(none)"
"""Shown for a path that was made without a guideline."""
QUANTILES = (0.1, 0.5, 0.9)


def _right(paths: pa.Table) -> NDArray[np.bool_]:
    right: NDArray[np.bool_] = pc.equal(paths.column("verdict"), str(Verdict.CORRECT)).to_numpy()
    return right


def _is_read(paths: pa.Table) -> NDArray[np.bool_]:
    """Whether an answer was found in the path."""
    read_as = pc.fill_null(paths.column("read_as"), str(ReadAs.NOTHING))
    read: NDArray[np.bool_] = pc.not_equal(read_as, str(ReadAs.NOTHING)).to_numpy()
    return read


def _groups(
    paths: pa.Table, columns: Sequence[str]
) -> Iterator[tuple[tuple[Any, ...], NDArray[np.int64]]]:
    """The places of the rows of each group, in the order of the groups' values."""
    keys = [paths.column(name).to_pylist() for name in columns]
    places: dict[tuple[Any, ...], list[int]] = {}
    for place, key in enumerate(zip(*keys, strict=True)):
        places.setdefault(key, []).append(place)
    for key in sorted(places, key=lambda key: tuple(str(part) for part in key)):
        yield key, np.array(places[key], np.int64)


def _first_tries(paths: pa.Table) -> pa.Table:
    return paths.filter(pc.invert(paths.column("is_retry")))


def guideline_yield(paths: pa.Table) -> pa.Table:
    """For each round, dataset, kind and guideline: paths, right ones, their share with a 95 %
    interval, the share shrunk towards that of all guidelines on the same questions, the mean length
    of the right paths and the share cut off (null where there is no such path).

    Only the first pass counts: later ones are of unsolved questions, or were shown the answer.
    """
    rows: list[dict[str, Any]] = []
    given = _first_tries(paths)
    for (round_, dataset, kind), places in _groups(given, ("round", "dataset", "kind")):
        group = given.take(places)
        is_right = _right(group)
        found = [(key[0], of_one) for key, of_one in _groups(group, ("guideline_id",))]
        right = np.array([is_right[of_one].sum() for _, of_one in found])
        tries = np.array([len(of_one) for _, of_one in found])
        shrunk = shrunk_shares(right, tries)
        for number, (guideline_id, of_one) in enumerate(found):
            low, high = wilson_interval(int(right[number]), int(tries[number]))
            rows.append(
                {
                    "round": round_,
                    "dataset": dataset,
                    "kind": kind,
                    "guideline_id": guideline_id or PLAIN,
                    "num_paths": int(tries[number]),
                    "num_right": int(right[number]),
                    "share": right[number] / tries[number],
                    "low": low,
                    "high": high,
                    "shrunk_share": float(shrunk[number]),
                    **_lengths_of(group.take(of_one)),
                }
            )
    return pa.Table.from_pylist(rows, _YIELD)


def _lengths_of(paths: pa.Table) -> dict[str, float | None]:
    """The mean tokens of the right paths' last stage, and the share of the paths that a token limit
    cut off among those that did not fail; None where there is none of them."""
    tokens, right = paths.column("num_path_tokens").to_numpy(), _right(paths)
    made = ~paths.column("is_failed").to_numpy()
    cut = ~paths.column("is_finished").to_numpy()[made]
    return {
        "right_tokens": float(tokens[right].mean()) if right.any() else None,
        "cut_off_share": float(cut.mean()) if made.any() else None,
    }


_YIELD = pa.schema(
    [
        ("round", pa.int32()),
        ("dataset", pa.string()),
        ("kind", pa.string()),
        ("guideline_id", pa.string()),
        ("num_paths", pa.int64()),
        ("num_right", pa.int64()),
        ("share", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("shrunk_share", pa.float64()),
        ("right_tokens", pa.float64()),
        ("cut_off_share", pa.float64()),
    ]
)


def solved_by(paths: pa.Table) -> tuple[list[str], list[str], NDArray[np.bool_]]:
    """Question ids, guidelines, and the matrix (questions x guidelines) of which solved which.

    Only the first pass counts: later ones are of unsolved questions, or were shown the answer.
    """
    given = _first_tries(paths)
    guidelines = pc.fill_null(given.column("guideline_id"), PLAIN)
    ids = given.column("question_id").combine_chunks().dictionary_encode()
    names = guidelines.combine_chunks().dictionary_encode()
    solved = np.zeros((len(ids.dictionary), len(names.dictionary)), bool)
    right = _right(given)
    solved[ids.indices.to_numpy()[right], names.indices.to_numpy()[right]] = True
    return ids.dictionary.to_pylist(), names.dictionary.to_pylist(), solved


def guideline_credit(paths: pa.Table) -> pa.Table:
    """For each round, dataset and guideline: the questions it solved, those that it alone solved,
    and its Shapley credit (1 / number of guidelines that solved it, summed over questions)."""
    rows: list[dict[str, Any]] = []
    for (round_, dataset), places in _groups(paths, ("round", "dataset")):
        _, names, solved = solved_by(paths.take(places))
        alone = solved & (solved.sum(1, keepdims=True) == 1)
        credit = shapley_credit(solved)
        for number, name in enumerate(names):
            rows.append(
                {
                    "round": round_,
                    "dataset": dataset,
                    "guideline_id": name,
                    "num_solved": int(solved[:, number].sum()),
                    "num_solved_alone": int(alone[:, number].sum()),
                    "credit": float(credit[number]),
                }
            )
    return pa.Table.from_pylist(rows, _CREDIT)


_CREDIT = pa.schema(
    [
        ("round", pa.int32()),
        ("dataset", pa.string()),
        ("guideline_id", pa.string()),
        ("num_solved", pa.int64()),
        ("num_solved_alone", pa.int64()),
        ("credit", pa.float64()),
    ]
)


def unsolved_questions(paths: pa.Table) -> pa.Table:
    """The questions of each round that no path of the first pass answered rightly, with the number
    of those paths and how many of them could be read."""
    rows: list[dict[str, Any]] = []
    given = _first_tries(paths)
    right = _right(given)
    read = _is_read(given)
    for key, places in _groups(given, ("round", "dataset", "kind", "question_id")):
        if not right[places].any():
            row = dict(zip(("round", "dataset", "kind", "question_id"), key, strict=True))
            rows.append(row | {"num_paths": len(places), "num_read": int(read[places].sum())})
    return pa.Table.from_pylist(rows, _UNSOLVED)


_UNSOLVED = pa.schema(
    [
        ("round", pa.int32()),
        ("dataset", pa.string()),
        ("kind", pa.string()),
        ("question_id", pa.string()),
        ("num_paths", pa.int64()),
        ("num_read", pa.int64()),
    ]
)


def coverage(paths: pa.Table) -> pa.Table:
    """For each round, dataset and k: the mean share of questions that k of their paths, drawn
    without replacement, solve, and the mean number of different answers that they give; over the
    questions that have k paths of the first pass.

    A failed path counts as one that solves nothing. k is 1, 2, 4, ... and the largest number of
    paths of a question. `tokens` is the mean number of tokens of k paths, in all their stages, so
    that strategies can be compared at equal tokens.
    """
    rows: list[dict[str, Any]] = []
    given = _first_tries(paths)
    right, tokens = _right(given), given.column("num_tokens").to_numpy()
    for (round_, dataset), places in _groups(given, ("round", "dataset")):
        ids = given.column("question_id").take(places).combine_chunks().dictionary_encode()
        question = ids.indices.to_numpy()
        num_paths = np.bincount(question)
        num_right = np.bincount(question, right[places]).astype(np.int64)
        asked, times = _answers(question, given.column("predicted").take(places))
        mean_tokens = float(tokens[places].mean())
        for k in _powers_up_to(int(num_paths.max())):
            numbers = np.unique(num_paths[num_paths >= k])
            chances, seen = (
                np.concatenate(
                    [coverage_by_question(of[at == number], int(number), k) for number in numbers]
                )
                for of, at in ((num_right, num_paths), (times, num_paths[asked]))
            )
            rows.append(
                {
                    "round": round_,
                    "dataset": dataset,
                    "k": k,
                    "num_questions": len(chances),
                    "coverage": float(chances.mean()),
                    "num_answers": float(seen.sum() / len(chances)),
                    "tokens": k * mean_tokens,
                }
            )
    return pa.Table.from_pylist(rows, _COVERAGE)


_COVERAGE = pa.schema(
    [
        ("round", pa.int32()),
        ("dataset", pa.string()),
        ("k", pa.int64()),
        ("num_questions", pa.int64()),
        ("coverage", pa.float64()),
        ("num_answers", pa.float64()),
        ("tokens", pa.float64()),
    ]
)


def _answers(
    question: NDArray[np.int64], predicted: pa.ChunkedArray
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each different answer to each question: its question, and how many paths gave it. A path
    from which none was read gives none."""
    told = pa.table({"question": question, "answer": predicted}).drop_null()
    counted = told.group_by(["question", "answer"]).aggregate([([], "count_all")])
    return counted.column("question").to_numpy(), counted.column("count_all").to_numpy()


def diversity(paths: pa.Table, unlike: Mapping[tuple[int, str], float]) -> pa.Table:
    """For each round and dataset: how unlike the paths of one question are, in the first pass.

    `answers_differ` is the chance that two of a question's answers are different, and `vote_share`
    the share of its commonest one, as means over the questions with at least two answers.
    `texts_differ` is what `unlike` has by round and dataset: 1 minus the similarity of two paths.
    """
    rows: list[dict[str, Any]] = []
    given = _first_tries(paths)
    for (round_, dataset), places in _groups(given, ("round", "dataset")):
        ids = given.column("question_id").take(places).combine_chunks().dictionary_encode()
        asked, times = _answers(ids.indices.to_numpy(), given.column("predicted").take(places))
        number = np.bincount(asked, times)
        most = np.zeros(len(number))
        np.maximum.at(most, asked, times)
        several = number > 1
        pairs = number[several] * (number[several] - 1)
        alike = np.bincount(asked, times * (times - 1))[several]
        rows.append(
            {
                "round": round_,
                "dataset": dataset,
                "num_questions": int(several.sum()),
                "answers_differ": float((1 - alike / pairs).mean()) if several.any() else None,
                "vote_share": float((most / number)[several].mean()) if several.any() else None,
                "texts_differ": unlike.get((round_, dataset)),
            }
        )
    return pa.Table.from_pylist(rows, _DIVERSITY)


_DIVERSITY = pa.schema(
    [
        ("round", pa.int32()),
        ("dataset", pa.string()),
        ("num_questions", pa.int64()),
        ("answers_differ", pa.float64()),
        ("vote_share", pa.float64()),
        ("texts_differ", pa.float64()),
    ]
)


def _powers_up_to(largest: int) -> list[int]:
    powers = [2**power for power in range(largest.bit_length()) if 2**power <= largest]
    return powers if powers and powers[-1] == largest else [*powers, largest]


def lengths(paths: pa.Table) -> pa.Table:
    """For each round, dataset and verdict: paths, how many a token limit cut off, and the tokens of
    the last stage: mean and quantiles. Failed paths are left out, since they have no last stage."""
    rows: list[dict[str, Any]] = []
    made = paths.filter(pc.invert(paths.column("is_failed")))
    finished = made.column("is_finished").to_numpy()
    tokens = made.column("num_path_tokens").to_numpy()
    for key, places in _groups(made, ("round", "dataset", "verdict")):
        quantiles = np.quantile(tokens[places], QUANTILES)
        rows.append(
            dict(zip(("round", "dataset", "verdict"), key, strict=True))
            | {
                "num_paths": len(places),
                "num_truncated": int((~finished[places]).sum()),
                "mean_tokens": float(tokens[places].mean()),
                **{
                    f"tokens_{100 * q:.0f}": float(v)
                    for q, v in zip(QUANTILES, quantiles, strict=True)
                },
            }
        )
    return pa.Table.from_pylist(rows, _LENGTHS)


_LENGTHS = pa.schema(
    [
        ("round", pa.int32()),
        ("dataset", pa.string()),
        ("verdict", pa.string()),
        ("num_paths", pa.int64()),
        ("num_truncated", pa.int64()),
        ("mean_tokens", pa.float64()),
        *((f"tokens_{100 * q:.0f}", pa.float64()) for q in QUANTILES),
    ]
)


# --- the funnel --------------------------------------------------------------------------------


def funnel(
    paths: pa.Table, questions: Mapping[str, int], examples: Mapping[int, Mapping[str, Any]]
) -> pa.Table:
    """For each round and dataset, how many are left after each stage.

    The stages are `questions` (those to be answered), `with paths`, `solved` (also by a path that
    was shown the answer), `paths`, of these `finished`, of these `read`, of these `right`; then
    `dropped` with a row for each reason of the filters, `kept` and `examples`. Dropped and kept
    paths together are all paths. `questions` counts the training questions by dataset; `examples`
    are the manifests of the examples by round. A round without a manifest ends with `right`.
    """
    rows: list[dict[str, Any]] = []
    right, finished = _right(paths), paths.column("is_finished").to_numpy()
    read = finished & _is_read(paths)
    ids = paths.column("question_id").to_numpy()
    for (round_, dataset), places in _groups(paths, ("round", "dataset")):
        counts: list[tuple[str, str, int]] = [
            ("questions", "", questions.get(dataset, 0)),
            ("with paths", "", len(np.unique(ids[places]))),
            ("solved", "", len(np.unique(ids[places][right[places]]))),
            ("paths", "", len(places)),
            ("finished", "", int(finished[places].sum())),
            ("read", "", int(read[places].sum())),
            ("right", "", int((read & right)[places].sum())),
        ]
        facts = (examples.get(round_) or {}).get("datasets", {}).get(dataset)
        if facts is not None:
            counts += [("dropped", reason, number) for reason, number in facts["dropped"].items()]
            counts.append(("kept", "", facts["num_kept_paths"]))
            counts.append(("examples", "", facts.get("num_examples", facts["num_kept_paths"])))
        rows += [
            {
                "round": round_,
                "dataset": dataset,
                "stage": stage,
                "reason": reason,
                "number": number,
            }
            for stage, reason, number in counts
        ]
    return pa.Table.from_pylist(rows, _FUNNEL)


_FUNNEL = pa.schema(
    [
        ("round", pa.int32()),
        ("dataset", pa.string()),
        ("stage", pa.string()),
        ("reason", pa.string()),
        ("number", pa.int64()),
    ]
)


def filters(paths: pa.Table, selections: Mapping[int, Selected]) -> pa.Table:
    """For each round and dataset, the paths that are left after each filter, in their order.

    `dropped` is the difference to the stage before, and `share` what is left of it. The numbers are
    those of the manifest of the examples, which judges with today's grader. A round without one has
    the paths so far, and which are finished, read and right as they were stored (`is_so_far`).
    """
    rows: list[dict[str, Any]] = []
    right, finished = _right(paths), paths.column("is_finished").to_numpy()
    read = finished & _is_read(paths)
    for (round_, dataset), places in _groups(paths, ("round", "dataset")):
        manifest, settings = selections.get(round_, ({}, {}))
        facts = manifest.get("datasets", {}).get(dataset)
        if facts is not None:
            left = stages_left(facts, settings)
        else:
            stored = ((FINISHED, finished), (READ, read), (RIGHT, read & right))
            left = [(PATHS, len(places)), *((s.name, int(of[places].sum())) for s, of in stored)]
        before = left[0][1]
        for stage, number in left:
            rows.append(
                {
                    "round": round_,
                    "dataset": dataset,
                    "stage": stage,
                    "number": number,
                    "dropped": before - number,
                    "share": number / before if before else None,
                    "is_so_far": facts is None,
                }
            )
            before = number
    return pa.Table.from_pylist(rows, _FILTERS)


_FILTERS = pa.schema(
    [
        ("round", pa.int32()),
        ("dataset", pa.string()),
        ("stage", pa.string()),
        ("number", pa.int64()),
        ("dropped", pa.int64()),
        ("share", pa.float64()),
        ("is_so_far", pa.bool_()),
    ]
)


# --- base and tuned ----------------------------------------------------------------------------


def changed_questions(
    base: Mapping[str, Prediction], tuned: Mapping[str, Prediction], step: str
) -> pa.Table:
    """The held-out questions that both models answered, and what changed in both readings.

    `step` names the tuned model's predictions. A change is `gained`, `lost`, `right` (both are) or
    `wrong` (neither is).
    """
    rows = []
    for question_id in sorted(base.keys() & tuned.keys()):
        before, after = base[question_id], tuned[question_id]
        question = before.question
        rows.append(
            {
                "step": step,
                "split": question.split,
                "domain": question.domain,
                "dataset": question.dataset,
                "kind": question.kind,
                "question_id": question_id,
                "strict": change_of(before, after, tolerant=False),
                "tolerant": change_of(before, after, tolerant=True),
                "base_predicted": before.predicted,
                "tuned_predicted": after.predicted,
                "answer": question.answer,
            }
        )
    return pa.Table.from_pylist(rows, _CHANGED)


_CHANGED = pa.schema(
    [
        ("step", pa.string()),
        ("split", pa.string()),
        ("domain", pa.string()),
        ("dataset", pa.string()),
        ("kind", pa.string()),
        ("question_id", pa.string()),
        ("strict", pa.string()),
        ("tolerant", pa.string()),
        ("base_predicted", pa.string()),
        ("tuned_predicted", pa.string()),
        ("answer", pa.string()),
    ]
)
_CHANGES = {
    (False, True): "gained",
    (True, False): "lost",
    (True, True): "right",
    (False, False): "wrong",
}


def change_of(before: Prediction, after: Prediction, *, tolerant: bool) -> str:
    """What changed from one answer to another of the same question, in one of the readings."""
    return _CHANGES[is_correct(before, tolerant=tolerant), is_correct(after, tolerant=tolerant)]


def changes(changed: pa.Table) -> pa.Table:
    """For each tuned model, split and dataset, in both readings: how many questions were gained,
    lost, right twice and wrong twice, and the exact McNemar p value."""
    rows: list[dict[str, Any]] = []
    keys = ("step", "split", "domain", "dataset")
    for key, places in _groups(changed, keys):
        for reading in ("strict", "tolerant"):
            found = changed.column(reading).take(places).to_pylist()
            base = [change in ("lost", "right") for change in found]
            tuned = [change in ("gained", "right") for change in found]
            rows.append(
                dict(zip(keys, key, strict=True))
                | {"reading": reading, "num_questions": len(found)}
                | {change: found.count(change) for change in _CHANGES.values()}
                | {"p_value": exact_mcnemar(base, tuned)}
            )
    return pa.Table.from_pylist(rows, _CHANGE_COUNTS)


_CHANGE_COUNTS = pa.schema(
    [
        ("step", pa.string()),
        ("split", pa.string()),
        ("domain", pa.string()),
        ("dataset", pa.string()),
        ("reading", pa.string()),
        ("num_questions", pa.int64()),
        *((change, pa.int64()) for change in _CHANGES.values()),
        ("p_value", pa.float64()),
    ]
)
