"""Convert a row of the user's files to a question: its text, options and truth.

A setting of the source enables each conversion. If a row looks as if it needed one, the error
message names the setting.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, cast

from cluster.errors import InputError
from evaluation.grader import canonical_answer
from evaluation.question import ANSWER_TYPES, AnswerType, Domain, Question, Split
from evaluation.reading.files import suffix_of
from evaluation.reading.json_rows import json_value
from evaluation.reading.rows import SourceRow
from evaluation.reading.values import kind_of
from pipelines.questions.sources.columns import Columns, template_parts
from pipelines.questions.sources.source import stable_hash

Plain = bool | int | float | str
AnswerIndex = Literal[0, 1, "never"]
OptionLetters = Literal["strip", "keep"]

_OWN_LETTER = re.compile(r"\s*(?:\(([A-Za-z])\)|([A-Za-z])[.):])\s*(?=\S)")


class Conversions(Protocol):
    """The settings of a source that determine how its rows become questions."""

    @property
    def columns(self) -> Columns: ...
    @property
    def answer_type(self) -> AnswerType | None: ...
    @property
    def choices(self) -> tuple[str, ...] | None: ...
    @property
    def answer_map(self) -> dict[str, Plain] | None: ...
    @property
    def answer_index(self) -> AnswerIndex | None: ...
    @property
    def answer_after(self) -> str | None: ...
    @property
    def option_letters(self) -> OptionLetters | None: ...
    @property
    def shuffle_options(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class _Options:
    """The options of a question as its row lists them."""

    texts: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    """The row's names for them, such as A to D or 1 to 4; empty if they are only positions."""
    column: str | None = None
    """The column that contains them, for error messages."""
    right: int | None = None
    """The right one, if its column is known."""


def to_question(
    row: SourceRow,
    source: Conversions,
    question_id: str,
    dataset: str,
    split: Split,
    domain: Domain,
) -> Question:
    """The question of a row. Raises `InputError` with the row, the column and what to do."""
    columns = source.columns
    text = _question_text(row, columns.question)
    answer_type = _answer_type(row, source)
    options = _options(row, source, answer_type)
    question = Question(
        question_id=question_id,
        dataset=dataset,
        split=split,
        domain=domain,
        question=text,
        answer=_answer(row, source, answer_type, options),
        answer_type=answer_type,
        choices=options.texts,
        aliases=_aliases(row, source, answer_type, options),
        grader_data=_grader_data(row, columns.grader_data),
        solution=_solution(row, source),
        kind=_kind(row, columns.kind),
    )
    if source.shuffle_options and options.texts:
        return question.with_options(shuffled(question_id, len(options.texts)))
    return question


def shuffled(question_id: str, number: int) -> list[int]:
    """The order in which a question's options are shown; it depends only on the id."""
    return sorted(range(number), key=lambda place: stable_hash(f"{question_id}\n{place}"))


# --- the question's text -----------------------------------------------------------------------


def _question_text(row: SourceRow, template: str) -> str:
    parts = template_parts(template)
    if parts == (("", template),):
        return row.checked_text(template, column_value(row, template, "question"))
    text = "".join(
        literal + (_joined(row, name) if name is not None else "") for literal, name in parts
    )
    return row.checked_text(template, text)


def _joined(row: SourceRow, column: str) -> str:
    """The text of a column in a template; a row may leave it empty but must have it."""
    if not row.has(column):
        column_value(row, column, "question")
    value = row.get(column)
    if _is_csv(row):
        value = _from_json(value)
    if value is None or value == "":
        return ""
    items = value if isinstance(value, list) else [value]
    return "\n".join(row.written(column, item) for item in items)


# --- the options -------------------------------------------------------------------------------


def _options(row: SourceRow, source: Conversions, answer_type: AnswerType) -> _Options:
    if answer_type != "choice":
        _check_no_options(row, source, answer_type)
        return _Options()
    found = _listed_options(row, source)
    if not found.texts:
        raise InputError(
            f"{row.place}: a choice question without options (columns: {', '.join(row.values)}); "
            "name the column or columns that contain them with source.columns.choices, or the "
            "options of every question with source.choices"
        )
    return _without_letters(found) if source.option_letters == "strip" else found


def _check_no_options(row: SourceRow, source: Conversions, answer_type: AnswerType) -> None:
    """Raise `InputError` if a row of another type lists options."""
    columns = source.columns
    named = columns.options
    if isinstance(columns.choices, str) and source.choices is None:
        named = (columns.choices,)
    for column in named:
        if row.get(column):
            raise InputError(
                f"{row.place}, column {column!r}: a {answer_type} question has no options; "
                "make its answer type choice, or set source.columns.choices to null"
            )


def _listed_options(row: SourceRow, source: Conversions) -> _Options:
    if source.choices is not None:
        return _Options(row.checked_options("source.choices", source.choices))
    columns = source.columns
    if columns.options:
        return _options_of_columns(row, columns.options, columns.answer)
    column = columns.choices if isinstance(columns.choices, str) else None
    value = _from_json(row.get(column))
    if column is None or not value:
        return _Options()
    labels, texts = _labels_and_texts(row, column, value)
    return _Options(row.checked_options(column, texts), labels, column)


def _options_of_columns(row: SourceRow, columns: Sequence[str], answer: str | None) -> _Options:
    """One option per column, or several if it contains a list; trailing empty columns are
    skipped."""
    texts: list[Any] = []
    starts: dict[str, int] = {}
    for column in columns:
        if not row.has(column):
            column_value(row, column, "choices")
        value = _from_json(row.get(column))
        starts[column] = len(texts)
        texts += value if isinstance(value, list) else [value]
    while texts and texts[-1] is None:
        texts.pop()
    right = starts.get(answer) if answer is not None else None
    if texts and right is not None and right >= len(texts):
        raise row.wrong(answer, "is null; fill it in or remove the row")
    return _Options(row.checked_options(", ".join(columns), texts), (), columns[0], right)


def _labels_and_texts(
    row: SourceRow, column: str, value: Any
) -> tuple[tuple[str, ...], Sequence[Any]]:
    """The labels, if the options have any, and the texts of the options in one column."""
    if isinstance(value, list) and value and all(_is_labelled(item) for item in value):
        labels, texts = [item["label"] for item in value], [item["text"] for item in value]
    elif isinstance(value, dict) and all(isinstance(value.get(n), list) for n in ("label", "text")):
        labels, texts = value["label"], value["text"]
    elif isinstance(value, dict) and all(isinstance(text, str) for text in value.values()):
        labels, texts = list(value), list(value.values())
    elif isinstance(value, list):
        return (), value
    else:
        what = f": the options must be a list of texts, this is a {kind_of(value)}"
        what += '; write them as JSON, ["ice", "steam"]' if isinstance(value, str) else ""
        raise row.wrong(column, what)
    if len(labels) != len(texts):
        raise row.wrong(column, f"has {len(labels)} labels for {len(texts)} options")
    named = tuple(row.written(column, label) for label in labels)
    if len(set(named)) < len(named):
        raise row.wrong(column, f": two options have the same label, of {', '.join(named)}")
    return named, texts


def _is_labelled(item: Any) -> bool:
    return isinstance(item, dict) and {"label", "text"} <= item.keys()


def bring_letters(options: Sequence[str]) -> bool:
    """Whether the options begin with letters, as in `A. ice` and `B. steam`."""
    own = sorted(_own_letters(options))
    return len(own) > 1 and own == list(string.ascii_uppercase[: len(options)])


def _own_letters(options: Sequence[str]) -> tuple[str, ...]:
    found = [match for match in map(_OWN_LETTER.match, options) if match]
    return tuple((match[1] or match[2]).upper() for match in found)


def _without_letters(options: _Options) -> _Options:
    """The options without letters if each begins with its letter; otherwise unchanged.

    If the letters are not in order, they are the labels by which an answer names an option.
    """
    if not bring_letters(options.texts):
        return options
    own = _own_letters(options.texts)
    labels = options.labels or (own if own != tuple(sorted(own)) else ())
    texts = tuple(_OWN_LETTER.sub("", text, count=1).strip() for text in options.texts)
    return replace(options, texts=texts, labels=labels)


# --- the truth ---------------------------------------------------------------------------------


def _answer(row: SourceRow, source: Conversions, answer_type: AnswerType, options: _Options) -> str:
    """The canonical truth, or None if the files have none."""
    column = source.columns.answer
    if column is None:
        return ""
    if options.right is not None:
        column_value(row, column, "answer")
        return string.ascii_uppercase[options.right]
    value = column_value(row, column, "answer")
    if source.answer_after is not None:
        value = _behind(row, column, value, source.answer_after)[1]
    return _converted(row, column, value, source, answer_type, options)


def _converted(
    row: SourceRow,
    column: str,
    value: Any,
    source: Conversions,
    answer_type: AnswerType,
    options: _Options,
) -> str:
    """The canonical answer of a value, by the source's map, by position or label, or directly."""
    if source.answer_map is not None:
        value = _mapped(row, column, value, source.answer_map)
    if answer_type == "choice":
        value = _letter(row, column, value, source.answer_index, options)
    written = row.written(column, value)
    try:
        return canonical_answer(written, answer_type, options.texts)
    except ValueError as error:
        raise row.wrong(column, f": {error}{_hint(written, source, answer_type)}") from error


def _hint(written: str, source: Conversions, answer_type: AnswerType) -> str:
    """The setting that may be needed when a truth could not be read."""
    if "####" in written and source.answer_after is None:
        return "; if the answer comes after a mark, set source.answer_after to '####'"
    if answer_type == "choice" and written.isdecimal() and source.answer_index is None:
        return "; if it is the option's position, set source.answer_index to 0 or 1"
    if source.answer_map is None:
        return "; or define what the answers mean with source.answer_map"
    return ""


def _behind(row: SourceRow, column: str, value: Any, mark: str) -> tuple[str, str]:
    """The part of a text before its last mark, and the part after it."""
    text = row.written(column, value)
    before, found, after = text.rpartition(mark)
    if not found or not after.strip():
        raise row.wrong(column, f"has no answer after {mark!r} (source.answer_after); fix the row")
    return before.strip(), after.strip()


def _mapped(row: SourceRow, column: str, value: Any, answers: dict[str, Plain]) -> Plain:
    written = row.written(column, value)
    folded = {label.casefold(): answer for label, answer in answers.items()}
    found = answers.get(written, folded.get(written.casefold()))
    if found is None:
        raise row.wrong(
            column,
            f"is {written!r}, which is not in source.answer_map; it has {', '.join(answers)}",
        )
    return found


def _letter(
    row: SourceRow, column: str, value: Any, index: AnswerIndex | None, options: _Options
) -> Any:
    """The letter of the option at a position or with a label; otherwise the value itself."""
    if index in (0, 1):
        return _letter_at(row, column, value, cast(int, index), len(options.texts))
    written = row.written(column, value)
    if options.labels:
        if written not in options.labels:
            known = ", ".join(options.labels)
            raise row.wrong(column, f"is {written!r}, which is not one of the labels {known}")
        return string.ascii_uppercase[options.labels.index(written)]
    is_position = written.isdecimal() and int(written) <= len(options.texts)
    if index is None and is_position and written in options.texts:
        raise row.wrong(
            column,
            f"is {written}, the text of one option and possibly the position of another; set "
            "source.answer_index to 0 or 1 if it is the position, otherwise to never",
        )
    return value


def _letter_at(row: SourceRow, column: str, value: Any, first: int, number: int) -> str:
    last = first + number - 1
    is_whole = (
        isinstance(value, int | float) and not isinstance(value, bool) and value == int(value)
    )
    text = str(int(value)) if is_whole else str(value).strip()
    if not text.isdecimal() or not first <= int(text) <= last:
        raise row.wrong(
            column, f"is {value!r}, not a position from {first} to {last} (source.answer_index)"
        )
    return string.ascii_uppercase[int(text) - first]


def _aliases(
    row: SourceRow, source: Conversions, answer_type: AnswerType, options: _Options
) -> tuple[str, ...]:
    """The other right answers, in the same form as the answer."""
    column = source.columns.aliases
    value = _from_json(row.get(column))
    if column is None or not value:
        return ()
    if not isinstance(value, list):
        raise row.wrong(
            column,
            f": the aliases must be a list of answers, this is a {kind_of(value)}; fix it, or "
            "set source.columns.aliases to null",
        )
    return tuple(_converted(row, column, one, source, answer_type, options) for one in value)


# --- the rest ----------------------------------------------------------------------------------


def _answer_type(row: SourceRow, source: Conversions) -> AnswerType:
    column = source.columns.answer_type
    value = row.get(column)
    if value is None and source.answer_type is not None:
        return source.answer_type
    if value is None:
        raise InputError(
            f"{row.place}: the type of the answer is not given; "
            f"set source.answer_type to one of {', '.join(ANSWER_TYPES)}, or map the column "
            f"that contains it with source.columns.answer_type (columns: {', '.join(row.values)})"
        )
    if value not in ANSWER_TYPES:
        raise InputError(
            f"{row.place}, column {column!r}: unknown answer type {value!r}; "
            f"known are {', '.join(ANSWER_TYPES)}"
        )
    return cast(AnswerType, value)


def _grader_data(row: SourceRow, column: str | None) -> str:
    value = row.get(column)
    if column is None or value is None:
        return ""
    try:
        text = value if isinstance(value, str) else json.dumps(value)
    except TypeError as error:
        raise row.wrong(column, f": {error}; write it as a text") from error
    row.check_characters(column, text)
    return text


def _solution(row: SourceRow, source: Conversions) -> str:
    """The worked solution; if one column is both, without the line that only names the answer."""
    columns = source.columns
    value = row.get(columns.solution)
    if columns.solution is None or not value:
        return ""
    if columns.solution == columns.answer and source.answer_after is not None:
        return _behind(row, columns.solution, value, source.answer_after)[0]
    return row.checked_text(columns.solution, value)


def _kind(row: SourceRow, column: str | None) -> str:
    value = row.get(column)
    if column is None or value is None or value == "":
        return ""
    return row.written(column, value)


def _from_json(value: Any) -> Any:
    """The JSON value in a text, since a CSV cell is always text; otherwise the text itself."""
    if not isinstance(value, str) or not value.startswith(("[", "{")):
        return value
    try:
        found = json_value(value)
    except ValueError:
        return value
    return found if isinstance(found, list | dict) else value


def _is_csv(row: SourceRow) -> bool:
    return suffix_of(row.part) in (".csv", ".tsv")


def column_value(row: SourceRow, column: str, role: str) -> Any:
    """The value of a required column, which may not be empty; `role` is its setting."""
    value = row.get(column)
    return value if value is not None else row.value(column, _hint_of_column(row, role))


def _hint_of_column(row: SourceRow, role: str) -> str:
    """What to do if a column is missing."""
    hint = f"set its name with source.columns.{role}"
    if role == "question_id":
        hint += ", or set it to null to number the rows"
    if role == "question":
        hint += ", or compose it as in '{passage} {question}'"
    if _is_csv(row):
        hint += "; if the file has no header line, name its columns with source.header"
    return hint
