"""How long a pool of engines will still take: arithmetic on its counters, nothing is measured here.

Whole questions are a poor measure at the beginning: none is finished before the first one has
passed all stages, and by then much of the work of many others is done. So what is left is counted
in tokens, by kind of generation. Example::

    left = tokens_left(
        expected={24: 800, 32: 800, 90: 1000}, done={24: 160, 32: 40}, tokens={24: 3500, 32: 1200}
    )

A kind of generation is known by its token limit, which is what the engines are told.
"""

from __future__ import annotations

from collections.abc import Mapping

TokenLimit = int | None
"""The most tokens of a generation; None is what the context leaves."""

WINDOW_S = 1800.0
"""The rate is that of the last half hour. Chains that begin together finish their stages together,
so that over minutes the rate goes up and down; over hours the length of the texts may change."""
ENOUGH = 8
"""Generations of a kind from which on their mean length is believed."""


def expected_tokens(
    done: Mapping[TokenLimit, int], tokens: Mapping[TokenLimit, int], kind: TokenLimit
) -> float:
    """Tokens of one generation of a kind: the mean of those that are there.

    Before there are enough, it is the kind's limit times the share of their limits that the others
    used; without any, or without a limit, it is the mean of all.
    """
    if done.get(kind, 0) >= ENOUGH:
        return tokens[kind] / done[kind]
    limited = [each for each in done if each is not None and done[each]]
    most = sum(done[each] * each for each in limited if each is not None)
    if kind is None or not most:
        return sum(tokens.values()) / max(1, sum(done.values()))
    return kind * sum(tokens[each] for each in limited) / most


def tokens_left(
    expected: Mapping[TokenLimit, float],
    done: Mapping[TokenLimit, int],
    tokens: Mapping[TokenLimit, int],
) -> float:
    """Tokens whose time at the full rate is the time that is left.

    `expected` is how many generations of each kind there will be, `done` how many there are,
    `tokens` how many tokens these have in all. Of the generations in flight about half is made, and
    that is not subtracted: at the end they thin out, and an engine that is no longer full takes
    about so much longer.
    """
    kinds = {kind: max(0.0, count - done.get(kind, 0)) for kind, count in expected.items()}
    return sum(count * expected_tokens(done, tokens, kind) for kind, count in kinds.items())


def tokens_in_flight(
    done: Mapping[TokenLimit, int],
    tokens: Mapping[TokenLimit, int],
    in_flight: Mapping[TokenLimit, int],
) -> float:
    """Tokens of the generations that are not finished: each is taken to be half made."""
    return sum(n * expected_tokens(done, tokens, kind) for kind, n in in_flight.items()) / 2


def still_expected(
    open_questions: Mapping[str, int],
    finished: Mapping[str, int],
    per_question: Mapping[str, Mapping[TokenLimit, int]],
    done: Mapping[TokenLimit, int],
) -> dict[TokenLimit, float]:
    """How many generations of each kind there will be in all, those done included.

    All by job: the questions that still need a row, those that got one in this execution, and how
    many generations of each kind one question takes. What was done for more than the finished
    questions was done for open ones.
    """
    in_all: dict[TokenLimit, float] = dict.fromkeys(done, 0.0)
    of_finished: dict[TokenLimit, float] = dict.fromkeys(done, 0.0)
    for job, kinds in per_question.items():
        for kind, count in kinds.items():
            in_all[kind] = in_all.get(kind, 0.0) + count * open_questions.get(job, 0)
            of_finished[kind] = of_finished.get(kind, 0.0) + count * finished.get(job, 0)
    return {
        # A chain that failed early, or a question that was set aside, took fewer than planned.
        kind: done.get(kind, 0) + max(0.0, count - max(0.0, done.get(kind, 0) - of_finished[kind]))
        for kind, count in in_all.items()
    }
