"""The answers of the models of a run or an evaluation, each with the name that a report shows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from evaluation.answers import Answer, AnswerSet
from evaluation.predictions import Prediction
from pipelines.analysis.overview import current_ledger
from pipelines.stored_run import StoredRun

_STEP = re.compile(r"(?P<parent>.+)/predictions(?:-(?P<tuned_on>.+))?-[0-9a-f]{12}")
BASE = "base"


@dataclass(frozen=True)
class ModelAnswers:
    """What one model answered so far, judged by today's grader."""

    run: str
    model: str
    """`base`, `round 0`, `round 0 (gsm8k)`, or the name of an evaluated model."""
    step: str
    """The step without its fingerprint, such as `round_0/predictions`."""
    round: int | None
    """None for what is no round: the base, and the models of an evaluation."""
    tuned_on: str | None
    """The dataset that a model was tuned on where each dataset has its own; else None."""
    predictions: Sequence[Prediction]

    def answer_set(self, split: str, tuned_on: str | None = None) -> AnswerSet:
        """Its answers to one split, grouped as for a model that was tuned on a dataset."""
        asked = of_domains(self.predictions, tuned_on or self.tuned_on)
        found = [
            Answer.from_prediction(each, f"{self.run}/{self.model}")
            for each in asked
            if each.question.split == split
        ]
        return AnswerSet(f"{self.run}: {self.model}", found)


def of_domains(predictions: Iterable[Prediction], tuned_on: str | None) -> list[Prediction]:
    """The predictions; for a model tuned on one dataset, all others are out of domain."""
    return [
        each
        if tuned_on in (None, each.question.dataset)
        else replace(each, question=replace(each.question, domain="out_of_domain"))
        for each in predictions
    ]


def read_answers(name: str, run: StoredRun) -> list[ModelAnswers]:
    """The models of a run in the order of its steps; those that have not answered are left out.

    Of a run that reports on dev, answers to test questions are not read. Raises `DamagedFileError`.
    """
    found = [_of_step(name, run, match) for step in run.steps if (match := _STEP.fullmatch(step))]
    return [each for each in found if each.predictions]


def _of_step(name: str, run: StoredRun, match: re.Match[str]) -> ModelAnswers:
    parent, tuned_on = match["parent"].rpartition("/")[2], match["tuned_on"]
    number = parent.removeprefix("round_")
    round_ = int(number) if number != parent and number.isdigit() else None
    shown = f"round {round_}" if round_ is not None else _shown(run, parent)
    ledger = current_ledger(run.folder.child(match[0]))
    splits = ("dev",) if run.config.get("report_on") == "dev" else ("dev", "test")
    return ModelAnswers(
        run=name,
        model=f"{shown} ({tuned_on})" if tuned_on else shown,
        step=match[0].rpartition("-")[0],
        round=round_,
        tuned_on=tuned_on,
        predictions=[
            Prediction.from_row(row).graded() for row in ledger.rows() if row["split"] in splits
        ],
    )


def _shown(run: StoredRun, parent: str) -> str:
    """`base (bare)` for the base of a run that was asked with another prompt."""
    base, is_prompted, prompt = parent.partition("_")
    prompts = run.config.get("base_prompts") or ()
    return f"{base} ({prompt})" if base == BASE and is_prompted and prompt in prompts else parent


def asked_split(models: Iterable[ModelAnswers]) -> str:
    """`test`, or `dev` where no model has answered a question of test so far."""
    splits = {each.question.split for model in models for each in model.predictions}
    return "test" if "test" in splits or "dev" not in splits else "dev"
