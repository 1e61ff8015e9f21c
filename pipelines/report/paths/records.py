"""A path, or the answers to a held-out question, as the page shows it.

Each record has a line of the index, by which it is filtered, and a content, which is opened when
somebody looks at it::

    Record(line=Line(id="0/regenesis/gsm8k/train/42/decompose/0/0", verdict="correct", ...),
           question={"question_id": "gsm8k/train/42", "text": "A shop ...", ...},
           content={"stages": [{"title": "structure", "text": "1. Find ...", ...}], ...})

Places in texts are counted in UTF-16 units, as JavaScript does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from evaluation.extraction.answer_place import answer_place
from evaluation.grader import GRADER_VERSION, ReadAs
from evaluation.predictions import Prediction
from evaluation.question import AnswerType, Question
from pipelines.analysis.tables import change_of
from pipelines.synthesis.reasoning_path import ReasoningPath
from pipelines.synthesis.stages import STAGES

HELD_OUT = "held-out"
"""Stands in the place of the round for a question that both models answered."""
_SHORT = 60
_COLUMNS = {stage.column: stage for stage in STAGES.values()}


class Line(NamedTuple):
    """What a record is filtered by, and what its line in the list shows."""

    id: str
    question_id: str
    run: str
    round: str
    dataset: str
    kind: str
    guideline: str
    verdict: str
    outcome: str
    """`kept`, or why the filters dropped the path; for held-out questions what training changed."""
    read: str
    ended: str
    """`finished`, `truncated` or `failed`."""
    predicted: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Record:
    """One path, or one held-out question with its answers."""

    line: Line
    question: Mapping[str, Any]
    """The same for all records of a question."""
    content: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Selected:
    """What the `examples` step did with a path."""

    outcome: str = ""
    """`kept`, the reason for which it was dropped, or empty while that is not decided."""
    examples: Sequence[Mapping[str, Any]] = ()
    """The examples that were made of it: `form`, `answer_added`, `num_prompt_tokens`,
    `num_learned_tokens`, `prompt` and `learned` as texts."""


def path_record(
    row: Mapping[str, Any],
    path: Mapping[str, Any],
    selected: Selected,
    run: str,
    read_last: Sequence[AnswerType],
) -> Record:
    """The record of a path, given its stored row of a question and what was selected of it."""
    question, parsed = Question.from_row(row), ReasoningPath.from_row(path)
    shown = parsed.shown_question(question)
    line = Line(
        id=parsed.path_id,
        question_id=question.question_id,
        run=run,
        round=f"round {row.get('round') or 0}",
        dataset=question.dataset,
        kind=question.kind,
        guideline=parsed.guideline_id or "",
        verdict=parsed.verdict or "",
        outcome=selected.outcome,
        read=parsed.read_as or "",
        ended=_ended(parsed.error, is_finished=parsed.is_finished),
        predicted=_short(parsed.predicted),
        tokens=sum(made.num_tokens or 0 for made in parsed.generations),
    )
    place = _place(
        parsed.reasoning,
        shown,
        parsed.read_as,
        read_last=question.answer_type in read_last,
        finished=parsed.is_finished,
    )
    content = {
        "is_hinted": parsed.is_hinted,
        "shown": shown.text if parsed.option_order else "",
        "stages": _stages(parsed),
        "thinking": parsed.thinking,
        "place": place,
        "predicted": parsed.predicted,
        "judged": parsed.judged,
        "error": parsed.error,
        "examples": list(selected.examples),
    }
    return Record(line, _question_facts(question, row.get("grader_version")), content)


def _stages(path: ReasoningPath) -> list[dict[str, Any]]:
    """The texts of the chain in order, each with how its generation ended."""
    made = {each.stage: each for each in path.generations}
    return [
        {
            "title": column,
            "text": path.texts[column],
            "tokens": made[stage.name].num_tokens if stage.name in made else None,
            "ended": made[stage.name].finish_reason if stage.name in made else None,
        }
        for column, stage in _COLUMNS.items()
        if path.texts.get(column)
    ]


def answers_record(
    question: Question, answers: Mapping[str, Prediction], run: str, grader: str | None = None
) -> Record:
    """The record of a held-out question, with the answer of each model by the name of its step.

    The line has the grade of the last model, and what changed from the first to the last.
    """
    first, *_, last = [*answers.values(), *answers.values()]
    line = Line(
        id=f"{HELD_OUT}/{question.question_id}",
        question_id=question.question_id,
        run=run,
        round=HELD_OUT,
        dataset=question.dataset,
        kind=question.kind,
        guideline="",
        verdict=last.verdict or "",
        outcome=change_of(first, last, tolerant=False) if len(answers) > 1 else "",
        read=last.read_as or "",
        ended=_ended(last.error, is_finished=last.finish_reason == "stop"),
        predicted=_short(last.predicted),
        tokens=last.num_tokens or 0,
    )
    content = {"answers": [_answer(question, step, each) for step, each in answers.items()]}
    return Record(line, _question_facts(question, grader), content)


def _answer(question: Question, step: str, made: Prediction) -> dict[str, Any]:
    text, finished = made.response or "", made.finish_reason == "stop"
    return {
        "step": step,
        "text": text,
        "thinking": made.thinking or "",
        "place": _place(text, question, made.read_as, read_last=True, finished=finished),
        "predicted": made.predicted,
        "verdict": made.verdict,
        "read_as": made.read_as,
        "tokens": made.num_tokens,
        "ended": made.finish_reason,
        "error": made.error,
    }


def _question_facts(question: Question, grader: str | None) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "question_id": question.question_id,
        "split": question.split,
        "answer": question.answer,
        "answer_type": question.answer_type,
        "text": question.text,
    }
    if grader is not None and grader != GRADER_VERSION:
        facts["grader"] = grader  # its verdict may differ from what is marked
    return facts


def _ended(error: str | None, *, is_finished: bool) -> str:
    if error:
        return "failed"
    return "finished" if is_finished else "truncated"


def _short(text: str | None) -> str:
    """One line of a text, for the list."""
    line = " ".join((text or "")[: 4 * _SHORT].split())
    return line if len(line) <= _SHORT else f"{line[: _SHORT - 1]}…"


def _place(
    text: str, question: Question, read_as: str | None, *, read_last: bool, finished: bool
) -> list[int] | None:
    if read_as in (None, ReadAs.NOTHING) or not text:
        return None
    place = answer_place(text, question, read_last=read_last, finished=finished)
    return [utf16_length(text[:at]) for at in place] if place else None


def utf16_length(text: str) -> int:
    """The length of a text as JavaScript counts it."""
    return len(text) + sum(each > "\uffff" for each in text)
