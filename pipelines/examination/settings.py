"""The config tree of `regenesis evaluate`: the branches of a run's config that an evaluation needs.

So any config of a run will do, and what it says of synthesis and training is left aside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

from pydantic import Field

from cluster.inference.engine import EngineSettings
from cluster.session import ClusterSettings, StorageSettings
from cluster.settings import (
    OPERATIONAL,
    Neutral,
    Settings,
    overridden_settings,
    read_settings,
)
from evaluation.predictions import EvaluationSettings, SampleSettings
from evaluation.prompt import Message
from evaluation.question import Question
from evaluation.shots import Shot, few_shot_messages
from pipelines.config import find_config
from pipelines.planning.estimate import CostSettings
from pipelines.questions.loading import QuestionSettings

DEFAULT_RUN = "evaluations"


class ExaminationSettings(EvaluationSettings):
    """How models are examined; without samples and examples as in a run."""

    samples: Annotated[SampleSettings | None, Neutral(None)] = None
    """Drawn besides the greedy answer; null is none."""
    shots: Annotated[tuple[Shot, ...], Neutral(())] = ()
    """Solved questions that are shown before each question."""

    def messages(self, question: Question) -> list[Message]:
        """The chat that asks a question."""
        return few_shot_messages(question, self.shots, self.prompt)


class EvaluateSettings(Settings):
    """The whole tree."""

    run: Annotated[str, OPERATIONAL, Field(pattern=r"^\.*[A-Za-z0-9_-][A-Za-z0-9._-]*$")]
    """The name of the folder below `storage.root`."""
    questions: QuestionSettings
    evaluation: ExaminationSettings = ExaminationSettings()
    engine: EngineSettings = EngineSettings()
    cluster: ClusterSettings = ClusterSettings()
    storage: StorageSettings = StorageSettings()
    cost: CostSettings = CostSettings()


def load_settings(
    config: str | None,
    overrides: Sequence[str],
    complete: Callable[[dict[str, Any]], dict[str, Any]],
) -> EvaluateSettings:
    """The settings of a run's config, or the defaults, with overrides; `complete` adds the rest.

    Raises `InputError`.
    """
    tree: dict[str, Any] = {}
    if config is not None:
        own = EvaluateSettings.model_fields.keys() - {"run"}
        tree = {n: v for n, v in read_settings(find_config(config)).items() if n in own}
    return overridden_settings(EvaluateSettings, tree, overrides, config or "evaluate", complete)
