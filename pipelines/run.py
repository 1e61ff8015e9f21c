"""A run, a round, and a branch of a round: which steps there are, and where they are.

These classes are plain data. `pipelines.plan` creates them, and `pipelines.steps` makes the steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from cluster.inference.schedule import Questions
from cluster.models.model import Model
from cluster.store.folder import Folder
from cluster.store.step import Step
from evaluation.prompt import PromptName
from pipelines.config import Config
from pipelines.questions.loading import QuestionFacts
from pipelines.synthesis.chain import Recipe
from pipelines.synthesis.propose_guidelines import Expansion
from training.settings import TrainingSettings


@dataclass(frozen=True)
class Branch:
    """What follows from the examples of a round: a tuned model, its predictions, their scores."""

    dataset: str | None
    """The dataset whose examples are used; None uses all of them."""
    tuned: Model
    model: Step
    predictions: Step
    scores: Step


@dataclass(frozen=True)
class Round:
    """One round: the models with which it begins, and its steps."""

    number: int
    recipe: Recipe
    generator: Model
    """The model that synthesises the paths."""
    start: Model
    """The model that is fine-tuned."""
    training: TrainingSettings
    paths: Step
    examples: Step
    branches: tuple[Branch, ...]
    """One branch; with `training.mix: per_dataset`, one for each dataset."""
    previous: Round | None = None
    """The round before this one."""
    references: Mapping[str, Step] = field(default_factory=dict)
    """The predictions of the model with which it began, and of the base, by their names."""
    decision: Step | None = None
    """None if nothing is decided after a round."""

    @property
    def title(self) -> str:
        """What people read, and what tables call its model."""
        return f"round {self.number}"

    def earlier(self) -> Iterator[Round]:
        """The rounds before this one, the first one first."""
        if self.previous is not None:
            yield from self.previous.earlier()
            yield self.previous

    def steps(self) -> list[Step]:
        """All steps, in the order in which they are made."""
        return [
            *(self.paths, self.examples),
            *(branch.model for branch in self.branches),
            *(branch.predictions for branch in self.branches),
            *(branch.scores for branch in self.branches),
            *([self.decision] if self.decision else []),
        ]


@dataclass(frozen=True)
class Run:
    """The parts that all rounds of a run share."""

    config: Config
    folder: Folder
    questions: QuestionFacts
    base: Model
    questions_step: Step
    expansion: Expansion | None
    guidelines_step: Step | None
    """None if no further guidelines are proposed."""
    base_predictions: Step
    base_prompted: Mapping[PromptName, Step] = field(default_factory=dict)
    """The base's predictions with each of the further prompts (`base_prompts`)."""

    def steps(self) -> list[Step]:
        """The steps that do not belong to a round."""
        proposed = [self.guidelines_step] if self.guidelines_step else []
        return [self.questions_step, *proposed, *self.base_steps().values()]

    def base_steps(self) -> dict[PromptName, Step]:
        """The base's predictions by prompt; the first prompt is that of all models."""
        return {self.config.evaluation.prompt: self.base_predictions, **self.base_prompted}

    def held_out(self) -> Questions:
        """The questions that the models answer: dev, and test if the run reports on it."""
        return self.stored_questions(*self.config.asked_splits)

    def stored_questions(self, *splits: str) -> Questions:
        """The questions of some splits, in the form in which workers read them."""
        return Questions(self.questions_step.folder, splits)
