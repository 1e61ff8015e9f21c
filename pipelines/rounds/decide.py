"""The decision after a round: adopted or not, its alarms, and whether another round begins.

What it is made from are stored rows and the decision of the round before, so it comes out the same
whenever it is made; it is stored all the same, with the round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.inference.schedule import Questions
from cluster.store.folder import Folder
from cluster.store.ledger import Ledger
from evaluation.predictions import Prediction
from evaluation.scores import format_difference, percent
from evaluation.statistics import Interval, paired_difference
from pipelines.rounds.gate import Answers, gate_results, is_held, pairs_of, rights
from pipelines.rounds.measures import Measures, alarms, measure_round
from pipelines.rounds.settings import AfterRoundSettings, Reading, StopSettings


@dataclass(frozen=True)
class Deciding:
    """What a decision is made from."""

    settings: AfterRoundSettings
    dev: Questions
    candidate: Folder
    """The predictions of the round's model."""
    references: Mapping[str, Folder]
    """Those of the model with which the round began, and then of the base, by name."""
    paths: Folder
    train: Questions
    weights_changed: float | None
    before: Mapping[str, Any] | None
    """The decision of the round before, if there is one."""
    first: Mapping[str, Any] | None
    """The decision of round 0, if this is another round."""


def decide(given: Deciding) -> dict[str, Any]:
    """The facts of a decision, as JSON values. Runs as a task."""
    measures = measure_round(given.paths, given.train, given.weights_changed)
    candidate = read_answers(given.candidate, given.dev)
    references = {name: read_answers(f, given.dev) for name, f in given.references.items()}
    return decision_of(given.settings, measures, candidate, references, given.before, given.first)


def read_answers(folder: Folder, questions: Questions) -> Answers:
    """The graded answers of a model."""
    rows = Ledger.read(folder).of(questions.read()).rows()
    return {row["question_id"]: Prediction.from_row(row).graded() for row in rows}


def decision_of(
    settings: AfterRoundSettings,
    measures: Measures,
    candidate: Answers,
    references: Mapping[str, Answers],
    before: Mapping[str, Any] | None = None,
    first: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The facts of a decision: what was measured, the gate, the alarms and a reason to stop.

    `references` begins with the model with which the round began; `before` and `first` are the
    decisions of the round before and of round 0.
    """
    reading = settings.reading
    gate = gate_results(settings.gate, candidate, references, reading) if settings.gate else []
    is_adopted = settings.adopt == "always" or is_held(gate)
    began_with = next(iter(references.values()))
    gain = _gain(candidate, began_with, settings.gate_tasks, reading)
    has_gained = is_adopted and gain is not None and gain.low > 0
    earlier = before or {}
    facts: dict[str, Any] = {
        "adopted": is_adopted,
        "gate": [result.facts() for result in gate],
        "gate_lines": list(map(str, gate)),
        "gain": list(gain) if gain else None,
        "rounds_without_gain": 0 if has_gained else earlier.get("rounds_without_gain", 0) + 1,
        "measures": dict(measures),
        "all_generated_tokens": earlier.get("all_generated_tokens", 0)
        + int(measures["generated_tokens"] or 0),
        "alarms": alarms(settings.alarms, measures, (first or {}).get("measures", {})),
    }
    return facts | {"stop": reason_to_stop(settings.stop, facts)}


def _gain(
    candidate: Answers, reference: Answers, gate_tasks: Sequence[str], reading: Reading
) -> Interval | None:
    """The difference on the dev questions in domain that are not the gate's, if there are any."""
    questions = [answer.question for answer in candidate.values()]
    tasks = {q.dataset for q in questions if q.domain == "in_domain"} - set(gate_tasks)
    pairs = pairs_of(candidate, reference, tasks)
    return paired_difference(*rights(pairs, reading)) if pairs else None


def reason_to_stop(stop: StopSettings, facts: Mapping[str, Any]) -> str | None:
    """Why no further round begins; None if one may."""
    rounds, tokens = facts["rounds_without_gain"], facts["all_generated_tokens"]
    solved = facts["measures"].get("solved")
    if stop.no_gain is not None and rounds >= stop.no_gain:
        shown = format_difference(*facts["gain"]) if facts["gain"] else "unknown"
        return (
            f"no gain was shown in {rounds} round{'s' * (rounds != 1)} (last difference on dev, in "
            f"domain: {shown}; after_round.stop.no_gain {stop.no_gain})"
        )
    if stop.max_generated_tokens is not None and tokens >= stop.max_generated_tokens:
        return (
            f"{tokens:,} tokens were generated for paths "
            f"(after_round.stop.max_generated_tokens {stop.max_generated_tokens:,})"
        )
    if stop.min_solved is not None and solved is not None and solved < stop.min_solved:
        return (
            f"only {percent(solved)} % of the training questions have a right path "
            f"(after_round.stop.min_solved {percent(stop.min_solved)} %)"
        )
    return None


def describe_decision(title: str, began_with: str, facts: Mapping[str, Any]) -> list[str]:
    """The lines of a decision: its gate, whether the model is adopted, the alarms."""
    lines = [f"gate: {line}" for line in facts["gate_lines"]]
    if facts["adopted"]:
        lines.append("the model is adopted")
    else:
        lines.append(
            f"the model is not adopted, since the gate does not hold; a next round begins with "
            f"{began_with} again"
        )
    lines += [f"ALARM: {alarm}" for alarm in facts["alarms"]]
    if facts["stop"]:
        lines.append(f"no further round begins: {facts['stop']}")
    return [f"{title}: {line}" for line in lines]
