"""What a round looks like in numbers, and the alarms where a number is beyond its threshold.

{"solved": 0.62, "accepted": 0.31, "vote_share": 0.54, "diversity": 0.71, "path_tokens": 143.2,
 "weights_changed": 0.98, "generated_tokens": 345120}

Diversity, votes and lengths are measured on the first thousand questions, so that a round of
millions of paths is measured in a minute.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from cluster.inference.schedule import Questions
from cluster.store.folder import Folder
from cluster.store.ledger import Ledger
from evaluation.scores import percent
from pipelines.rounds.settings import AlarmSettings
from pipelines.selection.similarity import shingles, similarity
from pipelines.synthesis.stages import PATH

Measures = Mapping[str, float | None]
MEASURED_QUESTIONS = 1_000


def measure_round(paths: Folder, questions: Questions, weights_changed: float | None) -> Measures:
    """The measures of a round. Shares are between 0 and 1; None: there is nothing to measure."""
    ledger = Ledger.read(paths).of(questions.keys())
    accepted = np.array(ledger.index.column("num_accepted").to_pylist(), float)
    made = np.array(ledger.index.column("num_paths").to_pylist(), float)
    rows = list(itertools.islice(ledger.rows(), MEASURED_QUESTIONS))
    return {
        "solved": float((accepted > 0).mean()) if len(accepted) else None,
        "accepted": float(accepted.sum() / made.sum()) if made.sum() else None,
        **measure_paths([row["paths"] for row in rows]),
        "weights_changed": weights_changed,
        "generated_tokens": float(sum(ledger.index.column("num_tokens").to_pylist())),
    }


def measure_paths(paths: Iterable[Sequence[Mapping[str, Any]]]) -> Measures:
    """Votes, diversity and length of the paths of each question, as rows have them.

    Paths that failed or were shown the answer are left out.
    """
    by_question = [
        [path for path in of_question if not path["error"] and not path["pass"]]
        for of_question in paths
    ]
    votes = [share for each in by_question if (share := _vote_share(each)) is not None]
    unlike = [1 - alike for each in by_question for alike in _similarities(each)]
    lengths = [
        made["num_tokens"]
        for each in by_question
        for path in each
        for made in path["generations"] or ()
        if made["stage"] == PATH.name
    ]
    return {
        "vote_share": _mean(votes),
        "diversity": _mean(unlike),
        "path_tokens": _mean(lengths),
    }


def _vote_share(paths: Sequence[Mapping[str, Any]]) -> float | None:
    """The share of the most common answer; None with fewer than two answers."""
    answers = [path["predicted"] for path in paths if path["predicted"] is not None]
    return max(Counter(answers).values()) / len(answers) if len(answers) > 1 else None


def _similarities(paths: Sequence[Mapping[str, Any]]) -> Iterator[float]:
    """Of each path and the next one: enough for a mean, and linear in the number of paths."""
    sets = [shingles(path[PATH.column] or "") for path in paths]
    return (similarity(first, second) for first, second in itertools.pairwise(sets))


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def alarms(settings: AlarmSettings, measures: Measures, first: Measures) -> list[str]:
    """A line for each measure beyond its threshold; `first` are the measures of round 0."""
    lines = []
    for name, measure, is_least, what in _ALARMS:
        limit, value = getattr(settings, name), measures.get(measure)
        if limit is None or value is None:
            continue
        if value < limit if is_least else value > limit:
            beyond = "below" if is_least else "above"
            lines.append(
                f"{what}: {percent(value)} %, {beyond} after_round.alarms.{name} {percent(limit)} %"
            )
    return [*lines, *_alarm_of_length(settings, measures, first)]


_ALARMS = (
    ("min_solved", "solved", True, "training questions with a right path"),
    ("min_accepted", "accepted", True, "paths that are right"),
    ("max_vote_share", "vote_share", False, "votes for the most common answer of a question"),
    ("min_diversity", "diversity", True, "diversity of the paths of a question"),
    ("min_weights_changed", "weights_changed", True, "weights that the training changed"),
)
"""Setting, measure, whether the setting is the least value that is allowed, and its name."""


def _alarm_of_length(settings: AlarmSettings, measures: Measures, first: Measures) -> Iterator[str]:
    factor, now, before = (
        settings.max_length_factor,
        measures.get("path_tokens"),
        first.get("path_tokens"),
    )
    if factor is None or not now or not before:
        return
    if not 1 / factor <= now / before <= factor:
        yield (
            f"mean tokens of a path: {now:.0f} after {before:.0f} in round 0, beyond "
            f"after_round.alarms.max_length_factor {factor:g}"
        )
