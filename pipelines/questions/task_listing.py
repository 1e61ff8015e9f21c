"""The output of `regenesis.py tasks`: all tasks, or three questions of one as the model sees
them."""

from __future__ import annotations

import itertools
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

from cluster.errors import InputError
from cluster.terminal import format_table
from evaluation.prompt import answer_messages
from evaluation.question import Question, Split
from evaluation.reading.rows import resolve
from evaluation.task import Task, find_task, read_task, tasks
from pipelines.questions.sources.reasoning_gym import ReasoningGymSource, draw_questions

GYM = "reasoning_gym:"
NUM_SHOWN = 3
MAX_WRONG = 20  # wrong rows of a split that are listed before it is abandoned


def format_tasks() -> str:
    """A table of all tasks: name, splits with published counts, kinds, domain, licence."""
    head = ("task", "train", "dev", "test", "answers", "reasoning", "domain", "licence", "trains")
    rows = [head, *(_row_of(task) for task in tasks().values())]
    gym = ("any", "any", "any", "by family", "by family", "as set", "Apache-2.0", "yes")
    rows.append((f"{GYM}<family>", *gym))
    return format_table(rows)


def _row_of(task: Task) -> tuple[str, ...]:
    return (
        task.name,
        *(_count_of(task, split) for split in ("train", "dev", "test")),
        ", ".join(task.answer_types),
        task.reasoning,
        task.domain,
        task.licence,
        "no" if task.no_training or "train" not in task.splits else "yes",
    )


def _count_of(task: Task, split: Split) -> str:
    """The published number of rows: `?` if unknown, `-` for a split that does not exist."""
    if split not in task.splits:
        return "-"
    return f"{task.counts[split]:,}" if split in task.counts else "?"


def format_task(name: str, path: str | None = None, splits: Sequence[Split] = ()) -> str:
    """Describe a task, count the questions in each split, and show three of them.

    `path` is a folder or file of the user's, relative to the current folder; None means the Hugging
    Face hub. Without `splits`, the available ones are read. Raises `InputError`.
    """
    if name.startswith(GYM):
        return _format_questions(_draw(name.removeprefix(GYM)))
    task = find_task(name)
    lines = [f"{task.name}: {task.reasoning}, {task.domain}, {task.licence}, from {task.upstream}"]
    lines += [task.note] if task.note else []
    lines += [f"never trained on: {task.no_training}"] if task.no_training else []
    place = resolve(path, ".") if path is not None else None
    shown: list[Question] = []
    for split in splits or task.splits:
        questions = _read_or_say(task, split, place, must=bool(splits), lines=lines)
        shown = shown or list(questions[:NUM_SHOWN])
    if not shown:
        raise InputError("\n".join(lines))
    return "\n".join(lines) + "\n\n" + _format_questions(shown)


def _read_or_say(
    task: Task, split: Split, place: str | None, *, must: bool, lines: list[str]
) -> list[Question]:
    """The questions of a split and lines about them; without `must`, a failure becomes a line."""
    wrong: list[str] = []
    try:
        questions = list(read_task(task, [split], place, wrong=wrong, max_wrong=MAX_WRONG))
    except InputError as error:
        if must:
            raise
        lines.append(f"{split}: {error}")
        return []
    kinds = Counter(question.answer_type for question in questions)
    said = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    published = _count_of(task, split)
    lines.append(f"{split}: {len(questions):,} questions ({said}); published: {published}")
    lines += [f"wrong: {complaint}" for complaint in wrong]
    return questions


def _draw(family: str) -> list[Question]:
    """Draw three questions of a `reasoning_gym` family."""
    source = ReasoningGymSource(kind="reasoning_gym", family=family)
    wanted: dict[Split, int] = {"train": 0, "dev": 0, "test": NUM_SHOWN}
    drawn = draw_questions(source, family, "in_domain", wanted, lambda text: "test")
    return list(itertools.islice(drawn, NUM_SHOWN))


def _format_questions(questions: Iterable[Question]) -> str:
    """Each question's prompt as the model gets it, and the truth, which the model does not get."""
    shown = []
    for question in questions:
        prompt = answer_messages(question)[-1]["content"]
        truth = f"truth ({question.answer_type}): {question.answer}"
        shown.append(f"=== {question.question_id}\n{prompt}\n--- {truth}")
    return visible("\n\n".join(shown))


def visible(text: str) -> str:
    """The text with control characters escaped, because a terminal would execute them."""
    return "".join(
        char.encode("unicode_escape").decode("ascii")
        if unicodedata.category(char) == "Cc" and char not in "\n\t"
        else char
        for char in text
    )
