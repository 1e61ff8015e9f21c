"""The sample logs of lm-evaluation-harness: `samples_<task>_<time>.jsonl`, read and written.

A line is one filter's view of one question, so a question has as many lines as its task has
filters::

    {"doc_id": 7, "doc": {"question": "...", "answer": "... #### 12"}, "target": "12",
     "arguments": {"gen_args_0": {"arg_0": "Question: ...", "arg_1": {"until": [...]}}},
     "resps": [["She has ... The answer is 12."]], "filtered_resps": ["12"],
     "filter": "strict-match", "metrics": ["exact_match"], "exact_match": 1.0,
     "doc_hash": "...", "prompt_hash": "...", "target_hash": "..."}

The verdict of a filter whose name says `strict` is taken for the strict reading, that of one whose
name says `flexible` for the tolerant one. A log with another filter has one verdict for both.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from cluster.errors import InputError
from evaluation.answers import Answer
from evaluation.predictions import Prediction
from evaluation.prompt import Message
from evaluation.question import Question
from evaluation.reading.json_rows import Placed
from evaluation.scores import is_correct, is_read

FIELDS = frozenset({"doc_id", "doc", "resps", "filtered_resps"})
"""Every line has them, and no other file of predictions does."""
FILE_NAME = re.compile(r"samples_(?P<task>.+?)(?:_\d{4}-\d\d-\d\dT[\d.-]+)?\.jsonl")
METRICS = ("exact_match", "acc", "exact_match_original", "acc_norm")
"""Those that say whether an answer is right, the first that a line has."""
QUESTION_FIELDS = ("question", "question_text", "query", "problem", "input", "Question", "stem")
ID_FIELDS = ("question_id", "id", "Id", "idx")
STRICT, FLEXIBLE = "strict-match", "flexible-extract"
INVALID = "[invalid]"
"""What the harness writes where its filter found no answer."""


def is_lm_eval(row: Mapping[str, Any]) -> bool:
    """Whether a row is a line of such a log."""
    return row.keys() >= FIELDS


def task_of(file_name: str) -> str:
    """The task that a log is of, by its name; another name is the task without its ending."""
    found = FILE_NAME.fullmatch(file_name)
    return found["task"] if found else file_name.removesuffix(".jsonl")


def read_lm_eval(rows: Iterable[Placed], task: str) -> Iterator[Answer]:
    """The answers in a log, one a question. Raises `InputError` with the line."""
    by_doc: dict[Any, list[Placed]] = {}
    for place, row in rows:
        if not is_lm_eval(row):
            missing = ", ".join(sorted(FIELDS - row.keys()))
            raise InputError(
                f"{place}: a line of an lm-evaluation-harness log has {missing}, and this one has "
                "not; remove the line, or give the log as the harness wrote it"
            )
        by_doc.setdefault(json.dumps(row["doc_id"]), []).append((place, row))
    for lines in by_doc.values():
        yield _answer(lines, task)


def _answer(lines: Sequence[Placed], task: str) -> Answer:
    place, row = lines[0]
    doc = row["doc"] if isinstance(row["doc"], Mapping) else {}
    verdicts = {str(line.get("filter", "")): _verdict(at, line) for at, line in lines}
    if len(verdicts) < len(lines):
        raise InputError(
            f"{lines[1][0]}: the question {row['doc_id']} is there twice with the same filter; "
            "give the log of one evaluation"
        )
    return Answer(
        place,
        _first_text(doc, ID_FIELDS) or f"{task}/{row['doc_id']}",
        _first_text(doc, QUESTION_FIELDS),
        _first_text(doc, ("dataset",)) or task,
        response=_response(row["resps"]),
        strict=_by_filter(verdicts, "strict"),
        tolerant=_by_filter(verdicts, "flexible"),
    )


def _verdict(place: str, row: Mapping[str, Any]) -> bool | None:
    """Whether the metric calls the answer right; None where the line has no such metric."""
    name = next((name for name in METRICS if name in row), None)
    if name is None:
        return None
    if row[name] not in (0, 1):
        raise InputError(
            f"{place}, field {name!r}: {row[name]!r} does not say right or wrong; give a log whose "
            "metric is 0 or 1"
        )
    return bool(row[name])


def _by_filter(verdicts: Mapping[str, bool | None], word: str) -> bool | None:
    """The verdict of the filter whose name has the word, else that of the first one."""
    named = [verdict for name, verdict in verdicts.items() if word in name]
    return next(iter(named or verdicts.values()))


def _response(resps: Any) -> str | None:
    """The first generated text; None for a log of likelihoods."""
    while isinstance(resps, list) and len(resps) == 1 and isinstance(resps[0], list):
        resps = resps[0]
    texts = resps if isinstance(resps, list) else []
    generated = texts and all(isinstance(text, str) for text in texts)
    return str(texts[0]) if generated and not _is_likelihood(texts) else None


def _is_likelihood(texts: Sequence[str]) -> bool:
    """Whether a response is the likelihood of an option and whether it is the greedy one."""
    return len(texts) == 2 and texts[1] in ("True", "False")


def _first_text(doc: Mapping[str, Any], names: Sequence[str]) -> str:
    values = (doc[name] for name in names if name in doc)
    return next((str(value) for value in values if isinstance(value, str | int)), "")


# --- writing -----------------------------------------------------------------------------------


def lm_eval_lines(
    predictions: Iterable[Prediction], ask: Callable[[Question], Sequence[Message]]
) -> Iterator[dict[str, Any]]:
    """Graded predictions of one task as the lines of a log: two each, strict and flexible.

    `ask` makes the chat with which a question was asked.
    """
    for doc_id, prediction in enumerate(predictions):
        prompt = "\n\n".join(message["content"] for message in ask(prediction.question))
        for name in (STRICT, FLEXIBLE):
            yield _line(doc_id, prediction, prompt, name)


def _line(doc_id: int, prediction: Prediction, prompt: str, name: str) -> dict[str, Any]:
    question = prediction.question
    doc = question.to_row()
    tolerant = name == FLEXIBLE
    is_found = prediction.predicted is not None and (tolerant or is_read(prediction))
    return {
        "doc_id": doc_id,
        "doc": doc,
        "target": question.answer,
        "arguments": {"gen_args_0": {"arg_0": prompt, "arg_1": {"do_sample": False}}},
        "resps": [[prediction.response or ""]],
        "filtered_resps": [prediction.predicted if is_found else INVALID],
        "filter": name,
        "metrics": ["exact_match"],
        "doc_hash": _hash(json.dumps(doc, indent=2, ensure_ascii=False)),
        "prompt_hash": _hash(prompt),
        "target_hash": _hash(question.answer),
        "exact_match": float(is_correct(prediction, tolerant=tolerant)),
    }


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
