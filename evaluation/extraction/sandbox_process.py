"""The program of `sandbox`: it forks workers that answer JSON requests, one per line.

    {"truth": "x^2", "found": "x \\cdot x"}                        ->  {"same": true}
    {"family": "countdown", "settings": "{}", "entry": "{...}", "answers": ["3*8"]}
                                                                   ->  {"score": 0.05}

The first process is told over its standard input, a socket, what the next worker has to import, and
receives the worker's socket with that message. It is self-contained: it is started by its path and
imports nothing of this project.
"""

from __future__ import annotations

import ast
import contextlib
import json
import logging
import os
import re
import resource
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache, partial
from typing import Any

MEMORY_LIMIT = 4 << 30  # bytes of address space
ROUNDING = 12  # digits; math-verify's default of 6 places would accept 0.333333 for 1/3
EXACT_DIGITS = 100  # two exact numbers have to agree in these
WARMING = (
    (r"\frac{x^2+1}{2}", r"\frac{1}{2}(1 + x^2)"),
    ("x = 2", "2"),
    (r"(1, \sqrt{2}]", r"x>1"),
)
EVALUATING = ("binary_matrix", "n_queens", "spiral_matrix", "string_insertion")
"""Families whose scorers call eval() on the answer to check whether it is a list."""
MAX_EVALUATED = 1_000  # characters of an answer that a scorer evaluates

COMPUTING = (
    "countdown",
    "intermediate_integration",
    "polynomial_multiplication",
    "puzzle24",
    "simple_integration",
)
"""Families whose scorers pass the answer to sympy, which evaluates it as Python."""
# They may only get arithmetic and names: no attribute, index, text, dunder name or huge power.
_ARITHMETIC = re.compile(r"[\w\s+\-*/^().=,]+")
_UNSAFE = re.compile(r"__|\.\s*[A-Za-z_]|[0-9]{13}|\*\*[\s(]*[\w.]+[\s)]*\*\*|\*\*[\s(+-]*[0-9]{5}")


_FOUR_RULES = re.compile(r"(?!.*\*\*)[0-9\s+\-*/()]+", re.DOTALL)


def same_mathematics(truth: str, found: str) -> bool:
    """Whether `math-verify` considers two formulas equal, with either of them as the truth."""
    from math_verify import verify

    gold, target = _parse(truth), _parse(found)
    if not gold or not target:
        return False
    # Its alarm-based timeouts are off, because this process has its own limit.
    limits: dict[str, Any] = {"float_rounding": ROUNDING, "timeout_seconds": None}
    return bool(verify(gold, target, **limits)) and _solve_alike(gold[0], target[0])


@lru_cache(maxsize=1024)
def _parse(formula: str) -> list[Any]:
    from math_verify import LatexExtractionConfig, parse

    # Units are removed before, and "t" as a unit would make `\omega t` equal to `\omega`.
    notation = replace(LatexExtractionConfig().normalization_config, units=False)
    config = [LatexExtractionConfig(normalization_config=notation)]
    text = f"${formula}$"
    return list(parse(text, config, fallback_mode="no_fallback", parsing_timeout=None))


def _solve_alike(gold: Any, target: Any) -> bool:
    """Whether two equations have the same unknowns and equally many solutions.

    `math-verify` compares their solutions without the names and stops at the shorter list.
    """
    import sympy

    if not (isinstance(gold, sympy.Eq) and isinstance(target, sympy.Eq)) or gold == target:
        return True
    if gold.free_symbols != target.free_symbols:
        return False
    try:
        if not sympy.simplify((gold.lhs - gold.rhs) / (target.lhs - target.rhs)).free_symbols:
            return True
        return len(sympy.solve(gold)) == len(sympy.solve(target))
    except Exception:  # noqa: BLE001  sympy gives up on odd equations in many ways
        return False


def family_score(family: str, settings: str, entry: str, answer: str) -> float:
    """The score of a `reasoning_gym` family's scorer, between 0 and 1."""
    dataset, asked = _family(family, settings), ast.literal_eval(entry)
    if family in COMPUTING and not _is_arithmetic(answer):
        return 0.0
    score = float(dataset.score_answer(answer, asked))
    if family in STRICTER and not STRICTER[family](answer, asked):
        return 0.0
    return score if 0 <= score <= 1 else 0.0  # also if it is not a number


@lru_cache(maxsize=64)
def _family(family: str, settings: str) -> Any:
    from reasoning_gym.factory import create_dataset

    dataset = create_dataset(family, **ast.literal_eval(settings), seed=0, size=1)
    if family in EVALUATING:
        vars(sys.modules[type(dataset).__module__])["eval"] = ast.literal_eval
    return dataset


def _is_arithmetic(answer: str) -> bool:
    fits = len(answer) <= MAX_EVALUATED and _ARITHMETIC.fullmatch(answer) is not None
    return fits and _UNSAFE.search(answer) is None


def _calculates(answer: str, entry: dict[str, Any]) -> bool:
    """Whether the target follows from the given numbers, each used once, by basic arithmetic."""
    from sympy.parsing.sympy_parser import parse_expr

    used = sorted(map(int, re.findall(r"[0-9]+", answer)))
    if not _FOUR_RULES.fullmatch(answer) or used != sorted(entry["metadata"]["numbers"]):
        return False
    return bool(parse_expr(answer.strip()) == entry["metadata"].get("target", 24))


def _is_near_probability(answer: str, entry: dict[str, Any]) -> bool:
    rational = entry["metadata"]["rational"]
    probability = Fraction(rational["numerator"], rational["denominator"])
    return abs(Fraction(answer) - probability) <= min(Fraction(1, 10**4), probability / 100)


def _are_same_numbers(answer: str, entry: dict[str, Any]) -> bool:
    found, wanted = ast.literal_eval(answer), ast.literal_eval(entry["answer"])
    return [float(number) for number in found] == [float(number) for number in wanted]


def _is_same_json(answer: str, entry: dict[str, Any]) -> bool:
    return bool(json.loads(answer) == json.loads(entry["answer"]))


STRICTER: dict[str, Callable[[str, dict[str, Any]], bool]] = {
    "coin_flip": _is_near_probability,
    "countdown": _calculates,
    "game_of_life": _is_same_json,
    "number_sorting": _are_same_numbers,
    "puzzle24": _calculates,
}
"""Families whose scorers give full scores to some wrong answers, and what is checked in addition.

They accept `0` for a probability of 0.4, powers and roots in basic arithmetic, any four numbers and
24.5 in `puzzle24`, a larger board that begins with the right one, and numbers that are off by one.
"""


_ITS_OWN: dict[str, Callable[..., bool]] = {}
"""The functions of math-verify that were replaced."""


def _same_number(a: Any, b: Any, float_rounding: int, numeric_precision: int) -> bool:
    """Whether two values are the same number at any scale; replaces math-verify's function.

    The original rounds to decimal places and accepts `1/2^{98}` for `1/2^{99}`. Here two exact
    numbers have to agree in `EXACT_DIGITS` digits, and a decimal and another number in
    `float_rounding` digits.
    """
    import sympy
    from math_verify import grader

    is_percent = any(grader.get_pct_val(each) is not None for each in (a, b))
    if is_percent or isinstance(a, sympy.MatrixBase) or isinstance(b, sympy.MatrixBase):
        return _ITS_OWN["same_number"](a, b, float_rounding, numeric_precision)  # and each element
    a, b = grader.safe_sympy_doit(a), grader.safe_sympy_doit(b)
    has_decimals = a.has(sympy.Float) or b.has(sympy.Float)
    a, b = (_without_floats(each) for each in (a, b))
    if a == b:
        return True
    if a.free_symbols or b.free_symbols or (a.is_Rational and b.is_Rational and not has_decimals):
        return False
    if a.is_infinite or b.is_infinite:
        return False  # they are not equal, and their difference is no measure
    largest = max(abs(a).evalf(30), abs(b).evalf(30))
    digits = float_rounding if has_decimals else EXACT_DIGITS
    return bool(abs(a - b).evalf(15, maxn=2 * EXACT_DIGITS) * 10**digits <= largest)


def _without_floats(value: Any) -> Any:
    """The value with each decimal replaced by its exact fraction."""
    import sympy

    floats = value.atoms(sympy.Float)
    return value.xreplace({each: sympy.Rational(str(each)) for each in floats}) if floats else value


def _load_mathematics() -> None:
    """Import math-verify, make it compare numbers exactly and letters by their case, and parse
    once to warm it up."""
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig
    from math_verify import grader, parser

    if not _ITS_OWN:
        by_case = ConversionConfig(lowercase_symbols=False)
        parser.latex2sympy = partial(parser.latex2sympy, conversion_config=by_case)
        _ITS_OWN["same_number"] = grader.sympy_numeric_eq
        grader.sympy_numeric_eq = _same_number
        for truth, found in WARMING:  # its parser is slow on the first of each kind
            same_mathematics(truth, found)


def _reply(request: dict[str, Any]) -> dict[str, Any]:
    if "family" not in request:
        return {"same": same_mathematics(request["truth"], request["found"])}
    replies = [
        _score(request["family"], request["settings"], request["entry"], answer)
        for answer in request["answers"]
    ]
    return max(replies, key=lambda reply: float(reply["score"]))


def _score(family: str, settings: str, entry: str, answer: str) -> dict[str, Any]:
    try:
        return {"score": family_score(family, settings, entry, answer)}
    except Exception as error:  # noqa: BLE001  a scorer that raises on an answer finds it wrong
        return {"score": 0.0, "error": f"{type(error).__name__}: {error}"[:500]}


def _import_needed(needs: dict[str, Any]) -> None:
    """Import and build what takes seconds, before the time of a request begins."""
    if "family" in needs:
        _family(needs["family"], needs["settings"])
    else:
        _load_mathematics()


def _serve(requests: socket.socket, cpu_limit_s: float) -> None:
    """Reply until the other side closes; the kernel ends a process that uses too much time."""
    with requests.makefile("rwb", buffering=0) as lines:
        for line in lines:
            try:
                request = json.loads(line)
                _import_needed(request)
                signal.setitimer(signal.ITIMER_PROF, cpu_limit_s)
                reply = _reply(request)
                signal.setitimer(signal.ITIMER_PROF, 0)
            except (MemoryError, RecursionError):
                return  # no result
            except Exception:  # noqa: BLE001  a fault of ours is reported where it is asked
                reply = {"fault": traceback.format_exc()}
            lines.write(json.dumps(reply).encode() + b"\n")


def main() -> None:
    """Fork a worker for each socket that arrives, until the other side closes."""
    sys.setrecursionlimit(3_000)
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # workers are not waited for
    control = socket.socket(fileno=0)
    while True:
        message, sockets, _, _ = socket.recv_fds(control, 1 << 16, 1)
        if not message:
            return
        with contextlib.suppress(Exception):  # the worker will fail in the same way and report it
            _import_needed(json.loads(message))
        if os.fork() == 0:
            control.close()
            _serve(socket.socket(fileno=sockets[0]), float(sys.argv[1]))
            os._exit(0)
        os.close(sockets[0])


if __name__ == "__main__":
    main()
