"""How long a pool of engines will still take, computed from its counters.

Finished questions are a poor measure at the beginning: none is finished before the first one has
passed all stages, and by then much of the work on many others is done. So the remaining work is
counted in tokens, by kind of generation. Example::

    left = tokens_left(
        expected={24: 800, 32: 800, 90: 1000}, done={24: 160, 32: 40}, tokens={24: 3500, 32: 1200}
    )

A kind of generation is identified by its token limit, which the engines receive.
"""

from __future__ import annotations

from collections.abc import Mapping

TokenLimit = int | None
"""The token limit of a generation; None is what the context leaves."""

WINDOW_S = 1800.0
"""The rate is taken over the last half hour. Chains that begin together finish their stages
together, so the rate fluctuates over minutes, and over hours the length of the texts may change."""
ENOUGH = 8
"""The number of generations of a kind from which their mean length is used."""


def expected_tokens(
    done: Mapping[TokenLimit, int], tokens: Mapping[TokenLimit, int], kind: TokenLimit
) -> float:
    """Expected tokens of one generation of a kind: the mean of those that are finished.

    While there are too few, it is the limit of the kind times the fraction of their limits that the
    others used. Without others, or without a limit, it is the mean of all generations.
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
    """The tokens that remain, in units of time at the full rate.

    `expected` is how many generations of each kind there will be, `done` how many are finished, and
    `tokens` how many tokens these have. About half of the generations in flight is done. It is not
    subtracted, because at the end fewer generations run, and an engine that is no longer full takes
    longer by about this amount.
    """
    kinds = {kind: max(0.0, count - done.get(kind, 0)) for kind, count in expected.items()}
    return sum(count * expected_tokens(done, tokens, kind) for kind, count in kinds.items())


def tokens_in_flight(
    done: Mapping[TokenLimit, int],
    tokens: Mapping[TokenLimit, int],
    in_flight: Mapping[TokenLimit, int],
) -> float:
    """Tokens of the unfinished generations, each of which is assumed to be half done."""
    return sum(n * expected_tokens(done, tokens, kind) for kind, n in in_flight.items()) / 2


def still_expected(
    open_questions: Mapping[str, int],
    finished: Mapping[str, int],
    per_question: Mapping[str, Mapping[TokenLimit, int]],
    done: Mapping[TokenLimit, int],
) -> dict[TokenLimit, float]:
    """How many generations of each kind there will be in all, including those that are done.

    The arguments are by job: the questions that still need a row, those that got one in this
    execution, and how many generations of each kind one question takes. Generations beyond those of
    the finished questions belong to open ones.
    """
    in_all: dict[TokenLimit, float] = dict.fromkeys(done, 0.0)
    of_finished: dict[TokenLimit, float] = dict.fromkeys(done, 0.0)
    for job, kinds in per_question.items():
        for kind, count in kinds.items():
            in_all[kind] = in_all.get(kind, 0.0) + count * open_questions.get(job, 0)
            of_finished[kind] = of_finished.get(kind, 0.0) + count * finished.get(job, 0)
    return {
        # A chain that failed early, or a question that was abandoned, took fewer than planned.
        kind: done.get(kind, 0) + max(0.0, count - max(0.0, done.get(kind, 0) - of_finished[kind]))
        for kind, count in in_all.items()
    }
