"""The question: what the model has to answer, and the right answer.

A row of the `questions` step, for example::

    {"question_id": "gsm8k/train/00042", "dataset": "gsm8k", "split": "train",
     "domain": "in_domain", "question": "A shop sold ...", "answer": "72",
     "answer_type": "number", "choices": [], "aliases": [], "grader": "", "grader_data": "",
     "solution": "", "kind": ""}
"""

from __future__ import annotations

import hashlib
import string
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import pyarrow as pa

AnswerType = Literal["number", "choice", "boolean", "text", "math"]
Domain = Literal["in_domain", "out_of_domain"]
Split = Literal["train", "dev", "test"]

LETTERS = string.ascii_uppercase
ANSWER_TYPES: tuple[str, ...] = get_args(AnswerType)
SPLITS: tuple[Split, ...] = get_args(Split)

QUESTION_SCHEMA = pa.schema(
    [
        ("question_id", pa.string()),
        ("dataset", pa.string()),
        ("split", pa.string()),
        ("domain", pa.string()),
        ("question", pa.string()),
        ("answer", pa.string()),
        ("answer_type", pa.string()),
        ("choices", pa.list_(pa.string())),
        ("aliases", pa.list_(pa.string())),
        ("grader", pa.string()),
        ("grader_data", pa.string()),
        ("solution", pa.string()),
        ("kind", pa.string()),
    ]
)

QUESTION_TABLE_SCHEMA = QUESTION_SCHEMA.append(pa.field("question_fingerprint", pa.string()))
"""A question's row and the fingerprint that links results to its text."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question with its ground truth.

    `answer` is canonical for its type: a plain decimal string or `1/3`, a capital letter by
    position in `choices`, `yes` or `no`, free text, or LaTeX. `choices` is empty unless the type is
    `choice`. `aliases` are other right answers. `grader` is a custom grader
    (`evaluation.extraction.custom_grader`), with its source if it is a file, and `grader_data` is
    what this grader needs to know. `solution` is a worked solution, if the dataset has one; it is
    not part of any evaluation prompt. `kind` is the part of the dataset that the question belongs
    to, such as a subject or a subtask, or empty; it changes neither the question nor its
    fingerprint."""

    question_id: str
    dataset: str
    split: Split
    domain: Domain
    question: str
    answer: str
    answer_type: AnswerType
    choices: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    grader: str = ""
    grader_data: str = ""
    solution: str = ""
    kind: str = ""

    @property
    def text(self) -> str:
        """Everything that the model may see: the question and, if any, its lettered options."""
        if not self.choices:
            return self.question
        options = zip(LETTERS, self.choices, strict=False)
        return "\n".join([self.question, *(f"{letter}) {text}" for letter, text in options)])

    def with_options(self, order: Sequence[int]) -> Question:
        """The question with its options reordered: option `order[n]` moves to position n.

        An empty order changes nothing.
        """
        if not order:
            return self
        choices = tuple(self.choices[n] for n in order)
        answer, *aliases = (shown_letter(one, order) for one in (self.answer, *self.aliases))
        return replace(self, choices=choices, answer=answer, aliases=tuple(aliases))

    @property
    def shown_answer(self) -> str:
        """The right answer as it is shown to a person: an option with its letter and text."""
        if self.answer_type != "choice":
            return self.answer
        return f"{self.answer}) {self.choices[LETTERS.index(self.answer)]}"

    @property
    def normalized_text(self) -> str:
        """The text by which questions are compared, without case and runs of white space."""
        return " ".join(self.text.casefold().split())

    @property
    def fingerprint(self) -> str:
        """16 hex digits over text and truth: a changed question with an old id is a new one."""
        content = "\x1f".join([self.text, self.answer, self.answer_type])
        if self.aliases or self.grader:
            content = "\x1f".join([content, *self.aliases, self.grader, self.grader_data])
        if self.solution:
            content = "\x1f".join([content, "solution", self.solution])
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def to_row(self) -> dict[str, Any]:
        """The question as a row of `QUESTION_SCHEMA`."""
        return asdict(self) | {"choices": list(self.choices), "aliases": list(self.aliases)}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Question:
        """The inverse of `to_row`; columns that do not belong to the question are ignored.

        Rows of earlier versions lack aliases, a custom grader, the solution or the kind.
        """
        own = {name: row[name] for name in QUESTION_SCHEMA.names if row.get(name) is not None}
        lists = {name: tuple(row.get(name) or ()) for name in ("choices", "aliases")}
        return cls(**(own | lists))


def shown_letter(letter: str, order: Sequence[int]) -> str:
    """The letter of an option after the options were reordered; other text is unchanged."""
    place = LETTERS.find(letter) if len(letter) == 1 else -1
    return LETTERS[list(order).index(place)] if 0 <= place < len(order) else letter


def own_letter(letter: str, order: Sequence[int]) -> str:
    """The inverse of `shown_letter`."""
    place = LETTERS.find(letter) if len(letter) == 1 else -1
    return LETTERS[order[place]] if 0 <= place < len(order) else letter


def question_table(questions: Sequence[Question]) -> pa.Table:
    """Questions as rows of `QUESTION_TABLE_SCHEMA`, in order."""
    columns: dict[str, list[Any]] = {
        name: [getattr(question, name) for question in questions] for name in QUESTION_SCHEMA.names
    }
    columns["question_fingerprint"] = [question.fingerprint for question in questions]
    return pa.table(columns, schema=QUESTION_TABLE_SCHEMA)
