"""The complete config tree, and every rule that concerns more than one of its branches.

Each folder defines its branch with the rules within it. A rule across branches is a function in
`RULES`. The rules are checked whenever a config is read, so every command obeys them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import pydantic
from pydantic import Field

from cluster.errors import InputError
from cluster.inference.engine import EngineSettings, slow_top_p
from cluster.models.model import ModelSettings
from cluster.session import ClusterSettings, StorageSettings
from cluster.settings import EXTENT, OPERATIONAL, Settings, load_settings
from evaluation.predictions import EvaluationSettings
from evaluation.prompt import PromptName
from evaluation.question import Split
from pipelines.planning.estimate import Budget, CostSettings
from pipelines.questions.loading import QuestionSettings
from pipelines.rounds.settings import AfterRoundSettings
from pipelines.selection.filters import JUDGING, ExampleSettings
from pipelines.strategy import with_strategy
from pipelines.synthesis.chain import SynthesisSettings
from pipelines.synthesis.stages import STAGES
from training.objectives import OBJECTIVES
from training.settings import TrainingSettings

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
NO_TRAINING = "questions.datasets: no question to train on; set a dataset's domain to in_domain"
NO_DEV = (
    "report_on: dev, but no dataset has a dev question, so nothing is reported; set num_dev or "
    "dev_share of a dataset, or report on test (`regenesis run --final`)"
)


class Config(Settings):
    """The complete config tree; each folder defines its branch."""

    run: Annotated[str, OPERATIONAL, Field(pattern=r"^\.*[A-Za-z0-9_-][A-Za-z0-9._-]*$")]
    """The name of the run, and of its folder below `storage.root`."""
    rounds: Annotated[int, EXTENT, Field(gt=0)] = 1
    """Rounds of self-improvement; each generates with the model of the previous one."""
    report_on: Annotated[Literal["dev", "test"], EXTENT] = "test"
    """The held-out questions that the models answer and the scores report. `dev` is for the time in
    which settings are chosen: no model is asked a test question. `test` asks both and reports test;
    `regenesis run --final` sets it for one command. Each report of test is recorded in the run."""
    base_prompts: Annotated[tuple[PromptName, ...], EXTENT] = ()
    """Further prompts with which the base answers the held-out questions (`evaluation.prompt`).
    The tables have a row for the one that is best on dev, so that a gain which the base also has
    when it is asked otherwise is not taken for learning. Needs dev questions in domain."""
    after_round: AfterRoundSettings = AfterRoundSettings()
    model: ModelSettings
    questions: QuestionSettings
    synthesis: SynthesisSettings = SynthesisSettings()
    examples: ExampleSettings = ExampleSettings()
    training: TrainingSettings = TrainingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    engine: EngineSettings = EngineSettings()
    cluster: ClusterSettings = ClusterSettings()
    storage: StorageSettings = StorageSettings()
    cost: CostSettings = CostSettings()
    budget: Budget = Budget()

    @property
    def further_prompts(self) -> tuple[PromptName, ...]:
        """The `base_prompts` without the one with which all models are asked."""
        return tuple(n for n in dict.fromkeys(self.base_prompts) if n != self.evaluation.prompt)

    @property
    def asked_splits(self) -> tuple[Split, ...]:
        """The splits that the models are asked after synthesis and training."""
        return ("dev",) if self.report_on == "dev" else ("dev", "test")

    @pydantic.model_validator(mode="after")
    def _branches_agree(self) -> Config:
        for rule in RULES:
            if wrong := rule(self):
                raise ValueError(wrong)
        return self


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file as a config, with the strategy's settings below and overrides on top.

    Raises `InputError` that names the file and the field.
    """
    return load_settings(Config, find_config(path), overrides, with_strategy)


def find_config(path: str | Path) -> Path:
    """Find a config file: `quickstart` or `configs/quickstart.yaml` is the shipped one from any
    folder, unless a file of that name exists. Raises `InputError`."""
    given = Path(path)
    shipped = CONFIGS / (given.name if given.suffix else f"{given.name}.yaml")
    if given.is_file() or given.parent.name not in ("", CONFIGS.name) or given.is_absolute():
        return given
    if shipped.is_file():
        return shipped
    if given.suffix:
        return given  # the reader's error lists the files in that folder
    names = ", ".join(sorted(file.stem for file in CONFIGS.glob("*.yaml")))
    raise InputError(
        f"no config file {path}, and none is shipped under that name; there are {names}"
    )


# --- rules: each gets the config and returns a sentence about what is wrong ---------------------

Rule = Callable[[Config], str | None]


def one_model_goes_on(config: Config) -> str | None:
    """A round begins with one model, but a mix per dataset gives several."""
    if config.rounds == 1 or config.training.mix != "per_dataset":
        return None
    return (
        f"rounds: {config.rounds} needs one model to continue with, and training.mix: per_dataset "
        "gives several; set rounds: 1 or training.mix: joint"
    )


def thinking_stays_whole(config: Config) -> str | None:
    """A target that is truncated could lose the end of its thinking."""
    if config.examples.thinking != "keep" or config.training.too_long != "truncate":
        return None
    return (
        "training.too_long: truncate could cut through the thinking that "
        "examples.thinking: keep retains; set too_long: drop or thinking: strip"
    )


def preferences_know_wrong_paths(config: Config) -> str | None:
    """A preference needs right and wrong paths."""
    verdict = config.examples.verdict
    if not OBJECTIVES[config.training.objective].needs_wrong_paths or verdict in JUDGING:
        return None
    return (
        f"training.objective: {config.training.objective} learns from right and wrong paths, "
        f"and examples.verdict: {verdict} does not distinguish them; set objective: sft or another "
        "verdict"
    )


def something_is_trained_on(config: Config) -> str | None:
    """At least one dataset has training questions."""
    datasets = config.questions.datasets.values()
    return None if any(each.domain == "in_domain" for each in datasets) else NO_TRAINING


def hints_need_the_truth(config: Config) -> str | None:
    """A hint shows the ground truth, which a majority vote is meant to work without."""
    if not config.synthesis.hint_stages or config.examples.verdict != "majority":
        return None
    return (
        "synthesis.hint_stages shows the ground truth, but examples.verdict: majority is for "
        "runs that do not know it; change one of them"
    )


def retries_are_made(config: Config) -> str | None:
    """Retries without a hint are only there if they are generated."""
    if config.examples.retries != "unhinted" or config.synthesis.unhinted_retries:
        return None
    return (
        "examples.retries: unhinted needs tries that synthesis.unhinted_retries generates; set "
        "that to true, or examples.retries to hinted or none"
    )


def unlabelled_questions_need_a_vote(config: Config) -> str | None:
    """Without answers, only a majority of a question's paths can decide what is right."""
    if config.examples.verdict == "majority":
        return None
    unlabelled = (name for name, each in config.questions.datasets.items() if not each.is_labelled)
    if (name := next(unlabelled, None)) is None:
        return None
    return (
        f"questions.datasets.{name} has no answers (columns.answer is null); "
        "set examples.verdict=majority"
    )


def one_model_is_decided_about(config: Config) -> str | None:
    """A decision is about one model, but a mix per dataset gives several."""
    if config.after_round.is_neutral or config.training.mix != "per_dataset":
        return None
    return (
        "after_round decides about one model, and training.mix: per_dataset gives several; remove "
        "after_round or set training.mix: joint"
    )


def gate_tasks_are_datasets(config: Config) -> str | None:
    """The gate asks questions of the config."""
    names = list(config.questions.datasets)
    unknown = (name for name in config.after_round.gate_tasks if name not in names)
    if (name := next(unknown, None)) is None:
        return None
    return f"after_round.gate.tasks: there is no dataset {name}; there are {', '.join(names)}"


def readings_are_made(config: Config) -> str | None:
    """A gate can only look at readings that the answers have."""
    reading = config.after_round.reading
    if reading in ("strict", "tolerant") or config.evaluation.readings:
        return None
    return f"after_round.reading: {reading} needs evaluation.readings: true; set it"


RULES: tuple[Rule, ...] = (
    one_model_is_decided_about,
    gate_tasks_are_datasets,
    readings_are_made,
    one_model_goes_on,
    thinking_stays_whole,
    preferences_know_wrong_paths,
    something_is_trained_on,
    hints_need_the_truth,
    retries_are_made,
    unlabelled_questions_need_a_vote,
)


def warnings_of(config: Config) -> list[str]:
    """Warnings about settings that are allowed but slow or unchecked, one sentence each."""
    engine = config.synthesis.engine or config.engine
    runs_on_cpu = not engine.use_gpu and not engine.is_endpoint
    slow = slow_top_p(map(config.synthesis.stages.of, STAGES), use_gpu=not runs_on_cpu)
    unproved = (
        "the paths come from an endpoint; the weights that it serves cannot be verified"
        if engine.is_endpoint
        else None
    )
    return [warning for warning in (slow, unproved) if warning]
