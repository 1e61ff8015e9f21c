r"""Agreement of the grader with math-verify on numbers and LaTeX, with reasons for differences.

    python -m benchmarks.agreement FOLDER [--limit N] [--json]
    python -m benchmarks.agreement FILE.jsonl [--limit N] [--json]

FILE.jsonl contains rows in the format of `regenesis.py grade`, with the expected verdict of each in
`expect` ("correct" or "not_correct"; without it a row is only compared). Every wrong accept and
wrong reject is printed, and the share of numbers and LaTeX on which math-verify agrees.

FOLDER contains question files in JSONL (`answer`, `answer_type`). Each truth is graded against
itself in other notations, against another truth of the same file and, if it is a number, against
nearby numbers. math-verify is used with its defaults. If the two disagree, the difference has to be
one of `EXPLANATIONS`; the remaining ones are printed line by line.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from cluster.errors import InputError
from evaluation.extraction.normalize import plain_text
from evaluation.extraction.number import exact_number
from evaluation.grade_file import grade_row, read_rows
from evaluation.grader import Verdict, grade
from evaluation.question import AnswerType, Question


class Pair(NamedTuple):
    """A truth, a boxed answer, and the two judgements."""

    kind: AnswerType
    truth: str
    found: str
    ours: bool
    theirs: bool


EXPLANATIONS = {
    "rounded": "math-verify rounds to 6 decimals if one side is a decimal; we compare exactly",
    "percent": "we accept 50% for 50 and for 0.5, math-verify only for 0.5",
    "words": "a name or a text: we compare words without case, math-verify products of letters",
    "base": "52_8: we compare digits and base, math-verify drops or misreads the subscript",
    "grouping": "a comma or space within a number that only one of the two reads as grouping",
    "units": "a unit or degrees that only one of the two strips",
    "computed": "the number type reads numbers and does not compute: \\sqrt{1} does not equal 1",
    "cut": "an answer whose last bracket is missing, which math-verify completes",
    "bracketed": "math-verify does not distinguish pairs, sets and intervals",
}


def explanation(pair: Pair) -> str | None:
    """The entry of `EXPLANATIONS` that explains a difference; None if there is none."""
    truth, found = pair.truth, pair.found
    both = f"{truth} {found}"
    if pair.kind == "number" and "\\sqrt" in found:
        return "computed"
    if found.count("{") != found.count("}") or found.count("(") > found.count(")"):
        return "cut"
    if "%" in both:
        return "percent"
    if re.search(r"[0-9]_", both):
        return "base"
    if re.search(r"[0-9][, ](?:\\!)? ?[0-9]{3}", both):
        return "grouping"
    if re.search(r"\\(?:text|mbox|circ)|degrees", both):
        return "words" if re.search(r"\\text\{\(?[A-Za-z]+\)?\}", both) else "units"
    if re.fullmatch(r"[A-Za-z ]+", truth):
        return "words"
    values = [exact_number(plain_text(text)) for text in (truth, found)]
    if all(values) and not pair.ours and ("." in both or "e" in both):
        return "rounded"
    if truth[:1] in "([\\" and found[:1] in "([\\" and "," in truth and not pair.ours:
        return "bracketed"
    return None


def pairs(folder: Path, limit: int | None) -> Iterator[Pair]:
    """Every pair of every file, with at most `limit` truths per file."""
    for path in sorted(folder.glob("*.jsonl")):
        truths = list(_truths(path))
        random.Random(0).shuffle(truths)
        for index, (kind, truth) in enumerate(truths[:limit]):
            other = truths[index - 1][1]
            for found in dict.fromkeys([*_rewritten(truth), *_near(truth), other]):
                yield Pair(kind, truth, found, _ours(kind, truth, found), _theirs(truth, found))


def _truths(path: Path) -> Iterator[tuple[AnswerType, str]]:
    for line in path.read_text(encoding="utf-8").strip().split("\n"):
        row = json.loads(line)
        if row["answer_type"] == "number":
            yield "number", row["answer"]
        elif path.stem.startswith("math") and row["answer_type"] in ("text", "math"):
            yield "math", row["answer"]


def _rewritten(truth: str) -> list[str]:
    """The truth in other notations with the same meaning."""
    forms = [truth, f" {truth} ", rf"\displaystyle {truth}"]
    if re.fullmatch(r"-?[0-9]+", truth):
        forms += [
            f"{int(truth):,}",
            f"{truth}.0",
            rf"\frac{{{2 * int(truth)}}}{{2}}",
            f"x = {truth}",
        ]
    elif re.fullmatch(r"-?[0-9]+\.[0-9]+", truth):
        forms += [f"{truth}0", f"{truth}00"]
    if r"\frac" in truth:
        forms.append(truth.replace(r"\frac", r"\dfrac"))
    if "+" in truth and re.fullmatch(r"[0-9a-z+^ \\]+", truth):
        forms.append(" + ".join(reversed(truth.split("+"))))
    if r"\sqrt" in truth and not re.search(r"[,=]", truth):
        forms.append(rf"\frac{{2({truth})}}{{2}}")
    return forms


def _near(truth: str) -> list[str]:
    """Answers that are wrong although they look like the truth."""
    if re.fullmatch(r"-?[0-9]+(?:\.[0-9]+)?", truth):
        return [f"{truth}1", f"-{truth}".replace("--", ""), f"{truth} + 1", rf"\sqrt{{{truth}}}"]
    return [f"{truth} + 1", f"2 {truth}", truth[:-1]]


def _ours(kind: AnswerType, truth: str, found: str) -> bool:
    question = Question("q", "d", "test", "in_domain", "?", truth, kind)
    return grade(rf"\boxed{{{found}}}", question, read_last=False).verdict == Verdict.CORRECT


def _theirs(truth: str, found: str) -> bool:
    from math_verify import parse, verify

    gold = parse(f"${truth}$", parsing_timeout=None)
    target = parse(rf"\boxed{{{found}}}", parsing_timeout=None)
    return bool(verify(gold, target, timeout_seconds=None))


class Judged(NamedTuple):
    """A graded row: its place, the expected verdict, and the two judgements."""

    place: str
    row: dict[str, Any]
    expected: bool | None
    ours: bool
    theirs: bool | None
    """None for a type of answer that math-verify does not support."""


def judged_rows(path: Path, limit: int | None) -> Iterator[Judged]:
    """The rows of a JSONL file, graded. Raises InputError for a file or row that cannot be read."""
    for place, row in itertools.islice(read_rows(path), limit):
        expect = row.get("expect")
        if expect not in ("correct", "not_correct", None):
            raise InputError(
                f"{place}, field 'expect': {expect!r} is unknown; use correct or not_correct"
            )
        graded = grade_row(row, place)
        known = row["answer_type"] in ("number", "math")
        yield Judged(
            place,
            graded,
            None if expect is None else expect == "correct",
            graded["verdict"] == Verdict.CORRECT,
            _theirs_of_text(str(row["answer"]), row["response"]) if known else None,
        )


def _theirs_of_text(truth: str, text: str) -> bool:
    from math_verify import parse, verify

    return bool(verify(parse(f"${truth}$"), parse(text)))


def summary(judged: list[Judged]) -> dict[str, int | float]:
    """The number of rows judged as expected, and the share on which math-verify agrees."""
    compared = [one for one in judged if one.theirs is not None]
    agreed = sum(one.ours == one.theirs for one in compared)
    return {
        "rows": len(judged),
        "expected": sum(one.expected is not None for one in judged),
        "wrong_accepts": sum(one.expected is False and one.ours for one in judged),
        "wrong_rejects": sum(one.expected is True and not one.ours for one in judged),
        "compared": len(compared),
        "agreement": agreed / max(len(compared), 1),
    }


def report_rows(path: Path, limit: int | None) -> dict[str, int | float]:
    """Print each row that is not judged as expected, then the counts."""
    judged = list(judged_rows(path, limit))
    for one in judged:
        if one.expected is not None and one.ours != one.expected:
            name = "wrong accept" if one.ours else "wrong reject"
            row = one.row
            print(
                f"{name}: {one.place}: truth {row['answer']!r}, read {row['predicted']!r} "
                f"({row['read_as']}) in {row['response'][-200:]!r}"
            )
    counts = summary(judged)
    print(
        f"{counts['rows']} rows, {counts['expected']} with a verdict: {counts['wrong_accepts']} "
        f"wrong accepts, {counts['wrong_rejects']} wrong rejects; math-verify agrees on "
        f"{100 * counts['agreement']:.2f} % of {counts['compared']}"
    )
    return counts


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path, help="a folder of question files, or a file of rows")
    parser.add_argument("--limit", type=int, help="maximum truths per file, or rows")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(argv)
    for library in ("math_verify", "latex2sympy2_extended"):
        logging.getLogger(library).setLevel(logging.CRITICAL)  # they tell of each odd formula
    if not arguments.path.is_dir():
        try:
            counts = report_rows(arguments.path, arguments.limit)
        except InputError as error:
            sys.exit(f"error: {error}")
        if arguments.json:
            print(json.dumps(counts))
        return
    judged = list(pairs(arguments.path, arguments.limit))
    different = [pair for pair in judged if pair.ours != pair.theirs]
    reasons = Counter(explanation(pair) or "unexplained" for pair in different)
    for pair in different:
        if explanation(pair) is None:
            print(f"unexplained: truth {pair.truth!r}, answer {pair.found!r}: ours {pair.ours}")
    share = 1 - len(different) / max(len(judged), 1)
    print(f"{len(judged)} pairs, {100 * share:.2f} % agree")
    for name, count in reasons.most_common():
        print(f"{count:6} {name}: {EXPLANATIONS.get(name, '')}")
    if arguments.json:
        print(json.dumps({"pairs": len(judged), "agreement": share, "differences": reasons}))


if __name__ == "__main__":
    main(sys.argv[1:])
