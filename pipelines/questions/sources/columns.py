"""The names of the columns in the user's files, and questions composed of several columns.

columns: {question: "{passage}\\n{question}", choices: [A, B, C, D], answer: label}
"""

from __future__ import annotations

import functools
import string
from collections.abc import Iterator, Mapping
from typing import Any

import pydantic

from cluster.settings import Settings


class Columns(Settings):
    """The names of the columns in the user's files; `question.stem` is a nested field.

    A column that is used by another setting is not also used by a default: with `answer: solution`
    the solution is null unless it is set as well.
    """

    question_id: str | None = "id"
    """Unique in the dataset. Null numbers the rows; moving a row then changes its id."""

    question: str = "question"
    """Everything that the model may see, except the options. A template such as
    `"{passage}\\n{question}"` joins several columns; items of a list are joined by line breaks."""

    answer: str | None = "answer"
    """The truth. Options are named by letter. If it is one of the columns in `choices`, that option
    is right. Null: the files have no truths and are only used for training, with
    `examples.verdict: majority`."""

    answer_type: str | None = "answer_type"
    """One of number, choice, boolean, text, math. Null uses `source.answer_type` for all rows."""

    choices: str | tuple[str, ...] | None = "choices"
    """The options, which only choice questions have: a column with a list of texts, of
    `{label, text}` or with `{label: [...], text: [...]}`; or a list of columns with one option
    each. Null means that there are no options."""

    aliases: str | None = "aliases"
    """Other right answers as a list; rows may lack it. Null means that there are none."""

    solution: str | None = "solution"
    """A worked solution as text; rows may lack it. Null means that there is none."""

    grader_data: str | None = "grader_data"
    """What a custom grader needs to know about a question: a text, or a value that it gets as
    JSON; rows may lack it. Null means that there is none."""

    kind: str | None = "kind"
    """The part of the dataset that a question belongs to, such as a subject, for tables by kind;
    rows may lack it. Null means that there is none."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _defaults_do_not_name_twice(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        named = {name for field, value in given.items() for name in _names_in(field, value)}
        optional = {
            name: default.default
            for name, default in cls.model_fields.items()
            if name not in ("question", "answer")
        }
        unset = {n: None for n, default in optional.items() if n not in given and default in named}
        # After this validator a JSON list is a Python list, which a strict tuple field refuses.
        plain = {n: tuple(v) if isinstance(v, list) else v for n, v in given.items()}
        return {**plain, **unset}

    @pydantic.model_validator(mode="after")
    def _question_does_not_tell_the_answer(self) -> Columns:
        try:
            shown = {name for _, name in template_parts(self.question)}
        except ValueError as error:
            raise ValueError(f"question: {self.question!r} is not a template: {error}") from error
        for name in ("answer", "solution"):
            if getattr(self, name) in shown and getattr(self, name) is not None:
                raise ValueError(
                    f"question and {name} both name the column {getattr(self, name)!r}, so "
                    "the model would be shown it; name another"
                )
        return self

    @property
    def options(self) -> tuple[str, ...]:
        """The columns that contain one option each; empty if one column lists all of them."""
        return self.choices if isinstance(self.choices, tuple) else ()

    def names(self) -> list[str]:
        """The columns that are read, without duplicates."""
        fields = self.model_dump().items()
        return list(
            dict.fromkeys(name for field, value in fields for name in _names_in(field, value))
        )

    def set_by_hand(self) -> dict[str, str]:
        """Optional columns whose name in the config differs from the default."""
        rest = ("choices", "aliases", "solution", "grader_data", "kind", "answer_type")
        named = {name: getattr(self, name) for name in rest}
        return {
            name: column
            for name, column in named.items()
            if isinstance(column, str) and column != type(self).model_fields[name].default
        }


def _names_in(field: str, value: Any) -> Iterator[str]:
    """The columns in a setting: a single one, those of a template, or those of a list."""
    if isinstance(value, tuple | list):
        yield from (name for name in value if isinstance(name, str))
    elif field == "question" and isinstance(value, str):
        try:
            yield from (name for _, name in template_parts(value) if name is not None)
        except ValueError:
            return  # the validator refuses it with the reason
    elif isinstance(value, str):
        yield value


@functools.cache
def template_parts(template: str) -> tuple[tuple[str, str | None], ...]:
    """The literal texts of a template, each with the column that follows it or None.

    A text without braces is the name of one column. Braces may only contain plain names; a literal
    brace is doubled. Raises `ValueError`.
    """
    if "{" not in template and "}" not in template:
        return (("", template),)
    parts = []
    for literal, name, form, conversion in string.Formatter().parse(template):
        if name == "" or form or conversion:
            raise ValueError("braces may only contain the name of a column")
        parts.append((literal, name))
    return tuple(parts)
