"""The program of `calculator`'s child: one JSON request a line in, one JSON reply a line out.

    {"truth": "x^2", "found": "x \\cdot x"}                        ->  {"same": true}
    {"family": "countdown", "settings": "{}", "entry": "{...}", "answer": "3*8"} ->  {"score": 0.05}

It stands alone: it is started by its path and imports nothing of ours.
"""

from __future__ import annotations

import ast
import json
import logging
import math
import os
import re
import resource
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import Any

LOADING_LIMIT_S = 300  # seconds of processor time between requests, for imports
MEMORY_LIMIT = 4 << 30  # bytes of address space
ROUNDING = 12  # decimal places; math-verify's own 6 would take 0.333333 for 1/3
EVALUATING = ("binary_matrix", "n_queens", "spiral_matrix", "string_insertion")
"""Families whose scorers call eval() on the answer, to see whether it is a list."""
MAX_EVALUATED = 1_000  # characters of an answer that a scorer evaluates

COMPUTING = (
    "countdown",
    "intermediate_integration",
    "polynomial_multiplication",
    "puzzle24",
    "simple_integration",
)
"""Families whose scorers hand the answer to sympy, which evaluates it as Python."""
# What those may get: arithmetic and names; no attribute, index, text, dunder name or huge power.
_ARITHMETIC = re.compile(r"[\w\s+\-*/^().=,]+")
_UNSAFE = re.compile(r"__|\.\s*[A-Za-z_]|[0-9]{13}|\*\*[\s(]*[\w.]+[\s)]*\*\*|\*\*[\s(+-]*[0-9]{5}")


_FOUR_RULES = re.compile(r"(?!.*\*\*)[0-9\s+\-*/()]+", re.DOTALL)


def same_mathematics(truth: str, found: str) -> bool:
    """Whether `math-verify` takes two formulas for one, whichever of them is the truth's form."""
    from math_verify import verify

    gold, target = _parse(truth), _parse(found)
    if not gold or not target:
        return False
    # Its alarm-based timeouts are off: this process has a limit of its own.
    limits: dict[str, Any] = {"float_rounding": ROUNDING, "timeout_seconds": None}
    return bool(verify(gold, target, **limits)) and _solve_alike(gold[0], target[0])


@lru_cache(maxsize=1024)
def _parse(formula: str) -> list[Any]:
    from math_verify import LatexExtractionConfig, parse

    text = f"${formula}$"
    config = [LatexExtractionConfig()]
    return list(parse(text, config, fallback_mode="no_fallback", parsing_timeout=None))


def _solve_alike(gold: Any, target: Any) -> bool:
    """Whether two equations have the same unknowns and as many solutions.

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
    """The score of a `reasoning_gym` family's own scorer, between 0 and 1."""
    dataset, asked = _family(family, settings), ast.literal_eval(entry)
    if family in COMPUTING and not _is_arithmetic(answer):
        return 0.0
    score = float(dataset.score_answer(answer, asked))
    if family in STRICTER and not STRICTER[family](answer, asked):
        return 0.0
    return score if 0 <= score <= 1 else 0.0  # also for one that is no number


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
    """Whether the four rules alone make the target of the given numbers, each used once."""
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
"""Families whose scorers also give full scores to wrong answers, and what is asked besides.

They take `0` for a probability of 0.4, powers and roots among the four rules, in `puzzle24` any
four numbers and 24.5, a larger board that begins with the right one, and numbers off by one.
"""


def _reply(request: dict[str, Any]) -> dict[str, Any]:
    if "family" not in request:
        return {"same": same_mathematics(request["truth"], request["found"])}
    try:
        return {"score": family_score(**request)}
    except Exception as error:  # noqa: BLE001  a scorer that raises on an answer finds it wrong
        return {"score": 0.0, "error": f"{type(error).__name__}: {error}"[:500]}


def _limit_processor(seconds: int) -> None:
    """Let the kernel end this process once the next request has used so many seconds."""
    used = math.ceil(time.process_time())
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (used + seconds, hard))


def _import_needed(request: dict[str, Any]) -> None:
    """Import and build what takes seconds before the request's own time begins."""
    if "family" in request:
        _family(request["family"], request["settings"])
    else:
        import math_verify  # noqa: F401


def main() -> None:
    """Answer requests until the input ends."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints is no reply
    sys.setrecursionlimit(3_000)
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        request = json.loads(line)
        _import_needed(request)
        _limit_processor(int(sys.argv[1]))
        replies.write(json.dumps(_reply(request)) + "\n")
        _limit_processor(LOADING_LIMIT_S)


if __name__ == "__main__":
    main()
