"""The table that people see on a run: the base and each round's model on the same questions.

For each reading a table with the share right, the paired difference to the base, the exact McNemar
p value and that value after Holm, which is adjusted over the comparisons of that table (see
`evaluation.comparison`); and one of how the models answered::

    | task               | model   | tolerant          | difference          | p      | p (Holm) |
    |--------------------|---------|-------------------|---------------------|--------|----------|
    | in_domain/products | base    | 10.0 [4.3, 21.4]  |                     |        |          |
    |                    | round 0 | 28.0 [17.5, 41.7] | +18.0 [+4.0, +30.6] | 0.0225 | 0.0449   |
"""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from cluster.inference.schedule import Questions
from cluster.store.folder import Folder
from cluster.store.ledger import Ledger
from cluster.terminal import format_table
from evaluation.answers import Answer, AnswerSet
from evaluation.comparison import ALL, MEAN, Comparison, compare, format_p_value, pair_answers
from evaluation.forced_scores import right_under
from evaluation.predictions import Prediction
from evaluation.question import Question
from evaluation.scores import (
    WIDTH,
    commonest_share,
    format_difference,
    format_share,
    is_read,
    is_truncated,
    mean_tokens,
    percent,
)
from evaluation.statistics import macro_mean

READINGS = ("strict", "tolerant", "forced")
"""The readings that have a table, see `evaluation.forced_scores`."""
_NO_BREAK = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True)
class Asked:
    """Which of the stored answers a table is of."""

    questions: Questions
    split: str
    hidden: Collection[str] = ()
    """Datasets whose questions are not reported."""
    in_domain: str | None = None
    """The only dataset that the tuned models were trained on; None: as the questions say."""

    def predictions(self, folder: Folder) -> list[Prediction]:
        """The graded answers to the questions that are reported, in the order of their ids."""
        rows = Ledger.read(folder).of(self.questions.read()).rows()
        found = (Prediction.from_row(row) for row in rows)
        shown = [p for p in found if p.question.split == self.split]
        kept = [p for p in shown if p.question.dataset not in self.hidden]
        ordered = sorted(kept, key=lambda each: each.question.question_id)
        return [self._placed(each.graded()) for each in ordered]

    def _placed(self, prediction: Prediction) -> Prediction:
        question = prediction.question
        if self.in_domain in (None, question.dataset):
            return prediction
        return replace(prediction, question=replace(question, domain="out_of_domain"))


def run_table(asked: Asked, answered: Mapping[str, Folder]) -> str:
    """The tables as Markdown, of models by name; the first is the base. Runs as a task.

    The text is empty if there is no question to report.
    """
    answers = {name: asked.predictions(folder) for name, folder in answered.items()}
    if not all(answers.values()):
        return ""
    return format_run(answers)


def shares_on_dev(asked: Asked, answered: Mapping[str, Folder]) -> dict[str, float]:
    """Of each model, the share right of the questions in domain, as the mean over their tasks:
    forced where all answers have this reading, else tolerant, so that a prompt which asks for no
    box does not lose by that. Runs as a task."""
    answers = {
        name: [p for p in asked.predictions(folder) if p.question.domain == "in_domain"]
        for name, folder in answered.items()
    }
    every = [p for of_model in answers.values() for p in of_model]
    has_forced = all(right_under(p, "forced") is not None for p in every)
    reading = "forced" if has_forced else "tolerant"
    return {name: _mean_of_tasks(of_model, reading) for name, of_model in answers.items()}


def _mean_of_tasks(answers: Iterable[Prediction], reading: str) -> float:
    by_task: dict[str, list[bool]] = {}
    for each in answers:
        by_task.setdefault(each.question.dataset, []).append(bool(right_under(each, reading)))
    shares = [sum(right) / len(right) for right in by_task.values()]
    return sum(shares) / len(shares) if shares else 0.0


def format_run(answers: Mapping[str, Sequence[Prediction]]) -> str:
    """The tables of models' graded answers to the same questions, in percent with 95 % intervals,
    and the notes that belong to them."""
    names = list(answers)
    compared = compare_with_first(answers)
    tables = [_table_of_reading(name, lines, names) for name, lines in compared.items()]
    tables.append(_table_of_answers(answers))
    notes = [
        *_note_on_kinds(tables[-1]),
        *_notes_on_p(compared),
        *_notes_on_means(compared, names[-1]),
    ]
    wrapped = [textwrap.fill(note, WIDTH).replace(_NO_BREAK, " ") for note in notes]
    return "\n\n".join([*tables, *wrapped])


def compare_with_first(
    answers: Mapping[str, Sequence[Prediction]],
) -> dict[str, list[Comparison]]:
    """By reading, each further model compared with the first; forced where all answers have it."""
    sets = [
        AnswerSet(name, [Answer.from_prediction(p, f"{name}/{p.question.question_id}") for p in of])
        for name, of in answers.items()
    ]
    pairings = [pair_answers(sets[0], other) for other in sets[1:]]
    found = [each for of_model in sets for each in of_model.answers]
    readings = [r for r in READINGS if all(each.right(r) is not None for each in found)]
    return {reading: compare(pairings, reading) for reading in readings}


def _table_of_reading(reading: str, lines: Sequence[Comparison], names: Sequence[str]) -> str:
    rows = [["task", "model", reading, "difference", "p", "p (Holm)"]]
    by_task: dict[str, list[Comparison]] = {}
    for line in lines:
        by_task.setdefault(f"{line.group}/{line.task}", []).append(line)
    for task, of_task in by_task.items():
        rows.append([task, names[0], format_share(*of_task[0].first_share), "", "", ""])
        rows += [
            [
                "",
                line.other,
                format_share(*line.other_share),
                format_difference(*line.difference),
                format_p_value(line.p_value),
                format_p_value(line.adjusted),
            ]
            for line in of_task
        ]
    return format_table(rows)


def _table_of_answers(answers: Mapping[str, Sequence[Prediction]]) -> str:
    """How each model answered; `commonest` needs no model."""
    rows = [["task", "n", "commonest", "model", "read", "cut off", "tokens"]]
    first, *_ = answers.values()
    for title, members in _tasks(first):
        questions = [
            p.question for p in first if (p.question.domain, p.question.dataset) in members
        ]
        shown = [title, str(len(questions)), _commonest(questions)]
        for name, of_model in answers.items():
            own = [p for p in of_model if (p.question.domain, p.question.dataset) in members]
            tokens = mean_tokens(own)
            shares = [sum(map(has, own)) / len(own) for has in (is_read, is_truncated)]
            how = [*map(percent, shares), "?" if tokens is None else f"{tokens:.0f}"]
            rows.append([*shown, name, *how])
            shown = ["", "", ""]
    return format_table(rows)


def _tasks(answers: Iterable[Prediction]) -> Iterator[tuple[str, set[tuple[str, str]]]]:
    """Title and datasets of each task, and of each domain that has several of them."""
    domains: dict[str, list[str]] = {}
    for group, task in sorted({(p.question.domain, p.question.dataset) for p in answers}):
        domains.setdefault(group, []).append(task)
    for domain, tasks in domains.items():
        yield from ((f"{domain}/{task}", {(domain, task)}) for task in tasks)
        if len(tasks) > 1:
            yield f"{domain}/{ALL}", {(domain, task) for task in tasks}


def _commonest(questions: Sequence[Question]) -> str:
    """The score of the commonest answer and, if it differs, that of each kind's commonest one."""
    by_task, by_kind = (commonest_share(questions, by_kind=kinds) for kinds in (False, True))
    return percent(by_task) if by_task == by_kind else f"{percent(by_task)} {percent(by_kind)}*"


def _notes_on_p(compared: Mapping[str, Sequence[Comparison]]) -> Iterator[str]:
    lines = next(iter(compared.values()))
    of_tasks = sum(line.p_value is not None and line.task != ALL for line in lines)
    of_groups = sum(line.task == ALL for line in lines)
    each = f"the {of_tasks} comparisons of single tasks" if of_tasks > 1 else "one comparison"
    groups = f", and separately over the {of_groups} of `{ALL}`" if of_groups else ""
    yield (
        f"Differences are to {lines[0].first}, paired by question; p is McNemar's exact test, and "
        f"p (Holm) is adjusted over {each} of its table{groups}."
    )


def _notes_on_means(compared: Mapping[str, Sequence[Comparison]], model: str) -> Iterator[str]:
    """For the last model, the mean difference of a group without each of its tasks."""
    for group in dict.fromkeys(line.group for lines in compared.values() for line in lines):
        by_reading = {
            reading: {
                line.task: line.difference.value
                for line in lines
                if (line.group, line.other) == (group, model) and line.task not in (ALL, MEAN)
            }
            for reading, lines in compared.items()
        }
        tasks, *_ = by_reading.values()
        if len(tasks) == 1:
            continue
        says = f"{group}/{MEAN} counts each task once"
        if len(tasks) == 2:
            yield f"{says}."
            continue
        without = [macro_mean(differences).without for differences in by_reading.values()]
        each = [
            f"{task} {' '.join(f'{100 * of_reading[task]:+.1f}' for of_reading in without)}"
            for task in tasks
        ]
        listed = ", ".join(text.replace(" ", _NO_BREAK) for text in each)
        yield (
            f"{says}; the difference of {model} ({', '.join(by_reading)}) without one task: "
            f"{listed}."
        )


def _note_on_kinds(text: str) -> Iterator[str]:
    if "* |" in text:
        yield "\\* score of the most common answer of each kind of question"
