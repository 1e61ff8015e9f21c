"""Scores of any number of models on the same questions: models x tasks, in long form.

A row, for example::

    {"model": "SmolLM2", "split": "test", "group": "out_of_domain", "task": "gsm8k",
     "reading": "strict", "metric": "accuracy", "value": 0.31, "low": 0.29, "high": 0.34,
     "num_questions": 1319}

The readings `strict` and `tolerant` are those of `evaluation.scores`, the others, where they were
asked for, of `evaluation.forced_scores`. A metric that needs no reading has the reading
"". Samples give `pass@k`, the chance that one of k samples is right, and `maj@n`, the chance that
the commonest answer of all n samples is right.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import pyarrow as pa

from cluster.inference.schedule import Questions
from cluster.store.folder import Folder
from cluster.store.ledger import Ledger
from cluster.terminal import format_table
from evaluation.forced_scores import CELLS, FURTHER, readable_cells, right_under
from evaluation.predictions import Prediction
from evaluation.scores import (
    commonest_share,
    format_share,
    is_correct,
    is_read,
    is_truncated,
    mean_tokens,
    percent,
)
from evaluation.statistics import (
    Interval,
    clustered_bootstrap,
    coverage_by_question,
    majority_at_k,
    mean_of_intervals,
    wilson_interval,
)

_SCORED = {"strict": False, "tolerant": True}
"""The readings that samples have, too, and whether they are tolerant."""
"""Each reading, and whether it is tolerant."""
MEAN = "mean"
"""The task of the rows that count each task of a group once."""
BOOTSTRAP_DRAWS = 2_000


@dataclass(frozen=True, slots=True)
class Measure:
    """One number. Shares are between 0 and 1, intervals are of 95 %."""

    model: str
    split: str
    group: str
    task: str
    reading: str
    """See `evaluation.forced_scores.READINGS`; empty for what needs no reading."""
    metric: str
    """`accuracy`, `pass@4`, `maj@8`, `read`, `cut_off`, `failed`, `tokens`, `commonest`; under a
    forced reading also `read_right`, `read_wrong`, `unread_right` and `unread_wrong`."""
    value: float
    low: float | None
    """None where the number has no interval."""
    high: float | None
    num_questions: int


def score_models(questions: Questions, answered: Mapping[str, Folder]) -> list[Measure]:
    """The measures of each model's stored predictions, judged by today's grader. Runs as a task."""
    asked = questions.read()
    measures: list[Measure] = []
    for model, folder in answered.items():
        rows = Ledger.read(folder).of(asked).rows()
        measures += measure_model(model, [Prediction.from_row(row).graded() for row in rows])
    return measures


def measure_model(model: str, predictions: Iterable[Prediction]) -> list[Measure]:
    """The measures of a model's graded predictions, task by task, and the mean of each group."""
    by_task: dict[tuple[str, str], dict[str, list[Prediction]]] = {}
    for prediction in predictions:
        question = prediction.question
        tasks = by_task.setdefault((question.split, question.domain), {})
        tasks.setdefault(question.dataset, []).append(prediction)
    measures: list[Measure] = []
    for (split, group), tasks in sorted(by_task.items()):
        of_group = [
            Measure(model, split, group, task, reading, metric, *interval, len(answers))
            for task, answers in tasks.items()
            for reading, metric, interval in _measures(answers)
        ]
        measures += of_group
        if len(tasks) > 1:
            measures += _means(of_group)
    return measures


Number = tuple[float, float | None, float | None]


def _measures(answers: Sequence[Prediction]) -> Iterator[tuple[str, str, Number]]:
    """(reading, metric, number) of the answers to the questions of one task."""
    num = len(answers)
    for reading, tolerant in _SCORED.items():
        right = sum(is_correct(each, tolerant=tolerant) for each in answers)
        yield reading, "accuracy", (right / num, *wilson_interval(right, num))
        for metric, interval in _of_samples(answers, tolerant=tolerant):
            yield reading, metric, interval
    for reading in FURTHER:
        yield from _of_reading(reading, answers)
    for metric, count in (
        ("read", sum(map(is_read, answers))),
        ("cut_off", sum(map(is_truncated, answers))),
        ("failed", sum(each.response is None for each in answers)),
    ):
        yield "", metric, (count / num, *wilson_interval(count, num))
    yield "", "commonest", (commonest_share(each.question for each in answers), None, None)
    if (tokens := mean_tokens(answers)) is not None:
        yield "", "tokens", (tokens, None, None)


def _of_reading(reading: str, answers: Sequence[Prediction]) -> Iterator[tuple[str, str, Number]]:
    """The numbers of a reading that all answers have; nothing otherwise."""
    right = [right_under(each, reading) for each in answers]
    if None in right:
        return
    num, count = len(answers), sum(map(bool, right))
    yield reading, "accuracy", (count / num, *wilson_interval(count, num))
    for cell, share in readable_cells(answers, list(map(bool, right))).items():
        yield reading, cell, (share, None, None)


def _of_samples(answers: Sequence[Prediction], *, tolerant: bool) -> Iterator[tuple[str, Number]]:
    """pass@k and maj@n of questions that all have the same number of samples."""
    sampled = [each for each in answers if each.samples]
    numbers = {len(each.samples) for each in sampled}
    if len(numbers) != 1:
        return
    [num] = numbers
    right = [[is_correct(one, tolerant=tolerant) for one in each.samples] for each in sampled]
    said = [
        [one.predicted if tolerant or is_read(one) else None for one in each.samples]
        for each in sampled
    ]
    counts = [sum(each) for each in right]
    for k in subset_sizes(num):
        yield f"pass@{k}", _over_questions(coverage_by_question(counts, num, k).tolist())
    chances = [majority_at_k([a], [r], num) for a, r in zip(said, right, strict=True)]
    yield f"maj@{num}", _over_questions(chances)


def subset_sizes(num_samples: int) -> list[int]:
    """1, 2, 4 and so on, and the number itself."""
    powers = (2**exponent for exponent in range(num_samples.bit_length()))
    return sorted({*(power for power in powers if power <= num_samples), num_samples})


def _over_questions(values: Sequence[float]) -> Number:
    """The mean over questions; the samples of a question are right together."""
    if len(values) < 2:
        return values[0], None, None
    return clustered_bootstrap(values, range(len(values)), draws=BOOTSTRAP_DRAWS)


def _means(measures: Sequence[Measure]) -> Iterator[Measure]:
    """Of each metric that every task has, the mean over the tasks of a group."""
    sizes = {each.task: each.num_questions for each in measures}
    for reading, metric in dict.fromkeys((each.reading, each.metric) for each in measures):
        each = [m for m in measures if (m.reading, m.metric) == (reading, metric)]
        if len(each) == len(sizes):
            value, low, high = _mean(each)
            yield replace(
                each[0],
                task=MEAN,
                value=value,
                low=low,
                high=high,
                num_questions=sum(sizes.values()),
            )


def _mean(measures: Sequence[Measure]) -> Number:
    intervals = [
        Interval(m.value, m.low, m.high)
        for m in measures
        if m.low is not None and m.high is not None
    ]
    if len(intervals) == len(measures):
        return mean_of_intervals(intervals)
    return sum(m.value for m in measures) / len(measures), None, None


def measures_table(measures: Sequence[Measure]) -> pa.Table:
    """The measures as an Arrow table, a column for each field of `Measure`."""
    schema = pa.schema(
        [
            *((name, pa.string()) for name in ("model", "split", "group", "task")),
            *((name, pa.string()) for name in ("reading", "metric")),
            *((name, pa.float64()) for name in ("value", "low", "high")),
            ("num_questions", pa.int64()),
        ]
    )
    return pa.Table.from_pylist([asdict(measure) for measure in measures], schema=schema)


# --- what people see ---------------------------------------------------------------------------

_Row = Mapping[tuple[str, str], Measure]
"""The measures of one model on one task, by reading and metric."""


def format_measures(measures: Sequence[Measure]) -> str:
    """Models x tasks as one Markdown table, in percent with 95 % intervals; with samples another
    one of pass@k and maj@n under the tolerant reading."""
    rows: dict[tuple[str, ...], dict[tuple[str, str], Measure]] = {}
    for each in measures:
        rows.setdefault((each.split, each.group, each.task, each.model), {})[
            each.reading, each.metric
        ] = each
    names = {key: [_task_name(rows, key), key[3]] for key in rows}
    order = sorted(rows, key=lambda key: _place(measures, key))
    head = ["task", "model", "n", "commonest", "strict", "tolerant", "read", "cut off", "failed"]
    table = [[*head, "tokens"], *([*names[key], *_cells(rows[key])] for key in order)]
    tables = [format_table(table)]
    tables += _tables_of_readings(rows, names, order)
    metrics = list(dict.fromkeys(m.metric for m in measures if "@" in m.metric))
    if metrics:
        sampled = [
            [*names[key], *(_cell(rows[key].get(("tolerant", name))) for name in metrics)]
            for key in order
        ]
        tables.append(format_table([["task", "model", *metrics], *sampled]))
    return "\n\n".join(tables)


def _tables_of_readings(
    rows: Mapping[tuple[str, ...], _Row],
    names: Mapping[tuple[str, ...], list[str]],
    order: Sequence[tuple[str, ...]],
) -> Iterator[str]:
    """The further readings that any row has, and what is right of the answers that can be read."""
    found = {reading for row in rows.values() for reading, metric in row if metric == "accuracy"}
    readings = [name for name in FURTHER if name in found]
    if not readings:
        return
    shares = [
        [*names[key], *(_cell(rows[key].get((name, "accuracy"))) for name in readings)]
        for key in order
    ]
    yield format_table([["task", "model", *(name.replace("_", " ") for name in readings)], *shares])
    cells = [
        [*names[key], *(_cell(rows[key].get(("forced", cell)), alone=True) for cell in CELLS)]
        for key in order
    ]
    head = [f"forced: {CELLS[0].replace('_', ' & ')}", *(c.replace("_", " & ") for c in CELLS[1:])]
    yield format_table([["task", "model", *head], *cells])


def _task_name(rows: Iterable[tuple[str, ...]], key: tuple[str, ...]) -> str:
    """The task, with its split and its group where the rows have several of them."""
    parts = zip(zip(*rows, strict=True), key, strict=True)
    split, group = ([own] if len(set(all_)) > 1 else [] for all_, own in itertools.islice(parts, 2))
    return "/".join([*split, *group, key[2]])


def _place(measures: Sequence[Measure], key: tuple[str, ...]) -> tuple[object, ...]:
    """Where a row comes: tasks as they were first met, the mean of a group behind them."""
    tasks = list(dict.fromkeys(m.task for m in measures if m.task != MEAN))
    models = list(dict.fromkeys(m.model for m in measures))
    split, group, task, model = key
    at = len(tasks) if task == MEAN else tasks.index(task)
    return split, group, at, models.index(model)


def _cells(row: _Row) -> list[str]:
    first = row["strict", "accuracy"]
    shares = [_cell(row.get(("", name)), alone=True) for name in ("read", "cut_off", "failed")]
    tokens = row.get(("", "tokens"))
    return [
        str(first.num_questions),
        _cell(row.get(("", "commonest")), alone=True),
        _cell(first),
        _cell(row["tolerant", "accuracy"]),
        *shares,
        "?" if tokens is None else f"{tokens.value:.0f}",
    ]


def _cell(measure: Measure | None, *, alone: bool = False) -> str:
    if measure is None:
        return ""
    if alone or measure.low is None or measure.high is None:
        return percent(measure.value)
    return format_share(measure.value, measure.low, measure.high)
