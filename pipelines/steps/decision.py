"""The `decision` step: what follows from a round, if the config says that anything may.

Its manifest has the decision, so a run that is continued goes on with the same model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cluster.events import record, timed
from cluster.models.model import Model
from cluster.remote import run_task
from cluster.settings import content_of, fingerprint, versioned
from cluster.store.step import Step
from cluster.terminal import say
from pipelines.questions.loading import QuestionFacts
from pipelines.rounds.decide import Deciding, decide, describe_decision
from pipelines.rounds.settings import AfterRoundSettings
from pipelines.run import Branch, Round, Run

VERSION = 1


def content(
    settings: AfterRoundSettings,
    questions: QuestionFacts,
    paths: Step,
    branch: Branch,
    references: Mapping[str, Step],
    before: Step | None,
) -> dict[str, Any]:
    """The rules, the rows they look at, and the decision before.

    Of the predictions only those of dev count: asking test decides nothing anew. Neither does
    another version of the grader: a decision that was made stays.
    """
    answered = {"candidate": branch.predictions, **references}
    made_from = {
        "settings": content_of(settings),
        "dev": questions.extent("dev"),
        "paths": paths.identity,
        "model": branch.model.identity,
        "predictions": {name: fingerprint(step.content) for name, step in answered.items()},
        "before": before.identity if before else None,
    }
    return versioned(made_from, VERSION)


def make(run: Run, round_: Round) -> None:
    """Decide about the round, unless that was done, and say what was decided."""
    if (step := round_.decision) is None:
        return
    began_with, *_ = round_.references
    with timed("step", round=round_.number, step="decision"):
        if not step.is_done:
            facts = run_task(decide, _deciding(run, round_))
            lines = describe_decision(round_.title, began_with, facts)
            step.folder.write_bytes("decision.md", "".join(f"- {ln}\n" for ln in lines).encode())
            step.commit(made=["decision.md"], began_with=began_with, **facts)
            shown = {name: facts[name] for name in ("adopted", "alarms", "stop")}
            record("decided", round=round_.number, **shown)
    say(summary(run, round_, decided(round_) or {}))


def _deciding(run: Run, round_: Round) -> Deciding:
    earlier = list(round_.earlier())
    model = round_.branches[0].model.manifest() or {}
    return Deciding(
        settings=run.config.after_round,
        dev=run.stored_questions("dev"),
        candidate=round_.branches[0].predictions.folder,
        references={name: step.folder for name, step in round_.references.items()},
        paths=round_.paths.folder,
        train=run.stored_questions("train"),
        weights_changed=model.get("weights_changed"),
        before=decided(earlier[-1]) if earlier else None,
        first=decided(earlier[0]) if earlier else None,
    )


def decided(round_: Round) -> Mapping[str, Any] | None:
    """The decision about a round; None if there is none, or it was not made yet."""
    return round_.decision.manifest() if round_.decision else None


def next_generator(round_: Round) -> Model:
    """The model with which the next round begins: that of this round, unless it was refused."""
    facts = decided(round_)
    return round_.branches[0].tuned if facts is None or facts["adopted"] else round_.generator


def reason_to_stop(round_: Round) -> str | None:
    """Why no round begins after this one; None if one may."""
    facts = decided(round_)
    return facts["stop"] if facts else None


def summary(run: Run, round_: Round, facts: Mapping[str, Any]) -> str:
    """The lines of the decision, and at the end of the run the model that is its result."""
    lines = describe_decision(round_.title, facts["began_with"], facts)
    if facts["stop"] or round_.number + 1 == run.config.rounds:
        result = next_generator(round_)
        where = result.folder.uri if result.folder else run.config.model.path
        lines.append(f"the run ends after {round_.title}; the last adopted model is {where}")
    return "\n".join(lines)
