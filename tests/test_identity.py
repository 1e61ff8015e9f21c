"""The folders of a run's steps: after an upgrade, earlier results are found.

`tests/golden/folders.json` holds, for the shipped configs of commit 811bd38 and for variants of
one of them, the name and the extent of each step as that commit laid them out. A folder that moves
makes its users generate everything again, so it may only move where the step means something else
now; then the step's VERSION is raised and the file is recorded anew::

    REGENESIS_RECORD_GOLDEN=1 python -m pytest tests/test_identity.py
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import pydantic
import pytest
import yaml

from cluster.errors import InputError
from cluster.inference.engine import EngineSettings, SamplingSettings
from cluster.models.model import Model
from cluster.settings import Neutral, Settings, versioned
from cluster.store.folder import Folder
from evaluation.grader import GRADER_VERSION
from evaluation.predictions import EvaluationSettings
from pipelines.config import Config, load_config
from pipelines.plan import all_steps, plan_run, step_names
from pipelines.questions.loading import QuestionFacts
from pipelines.run import Run
from pipelines.selection.contamination import ContaminationSettings
from pipelines.selection.filters import ExampleSettings
from pipelines.steps import (
    examples,
    guidelines,
    model,
    paths,
    predictions,
    questions,
    scores,
)
from pipelines.synthesis.chain import Recipe, SynthesisSettings
from tests.test_golden import GOLDEN, check
from training.objectives.dpo import DpoSettings
from training.settings import TrainingSettings

CONFIGS = tuple(sorted(path.stem for path in (GOLDEN / "configs").glob("*.yaml")))

VARIANTS: tuple[tuple[str, ...], ...] = (
    (),
    ("rounds=3",),
    ("rounds=2", "training.start_from=previous", "training.epochs_growth=1.2"),
    ("training.mix=per_dataset",),
    ("training.objective=dpo", "training.dpo.beta=0.3"),
    ("training.objective=kto",),
    ("training.method=lora", "training.lora.rank=8"),
    ("training.seed=3", "training.weight_by=vote_share"),
    ("synthesis.expand_guidelines=4", "rounds=2"),
    ("synthesis.hint_stages=[structure]", "synthesis.judge=all"),
    ("synthesis.samples=2", "synthesis.shuffle_options=true", "synthesis.seed=5"),
    ("synthesis.chain=[adapt, path]", "synthesis.stages.path.top_p=0.9"),
    ("examples.contamination.drop=true",),
    ("examples.verdict=majority", "examples.min_vote_share=0.4"),
    ("examples.forms=[evaluation, plain]", "examples.thinking=keep"),
    ("budget.generated_tokens=5000", "questions.datasets.products.max_accepted_paths=9"),
    ("evaluation.max_tokens=77", "evaluation.template_args={enable_thinking: true}"),
    ("engine.max_num_seqs=9", "training.num_workers=1", "cluster.progress_every_s=1"),
)


def facts_of(config: Config) -> QuestionFacts:
    """Questions of every dataset that nobody reads."""
    extents = {"train": "000000000001", "dev,test": "000000000002", "dev": "000000000003"}
    counts = [
        {
            "dataset": name,
            "split": split,
            "domain": dataset.domain,
            **dict.fromkeys(("num_read", "num_kept"), 4),
            **dict.fromkeys(("num_dropped_duplicate", "num_dropped_overlap"), 0),
            "commonest_answer_share": 0.5,
        }
        for name, dataset in config.questions.datasets.items()
        for split in ("train", "test")
        if split == "test" or dataset.domain == "in_domain"
    ]
    return QuestionFacts(extents | {"train,dev,test": "000000000003"}, counts, {}, {})  # type: ignore[arg-type]


def loaded(config_name: str, *overrides: str) -> Config:
    """A config that was shipped with 811bd38."""
    return load_config(GOLDEN / "configs" / f"{config_name}.yaml", overrides)


def planned(config: Config) -> Run:
    base = Model("the base model", "base", "cache")
    return plan_run(config, Folder.open("/nowhere"), base, facts_of(config))


def folders_of(config: Config) -> list[list[str]]:
    """The path and the extent of each step."""
    run = planned(config)
    return [[name, step.extent] for name, step in zip(step_names(run), all_steps(run), strict=True)]


def folders(config_name: str, *overrides: str) -> list[list[str]]:
    return folders_of(loaded(config_name, *overrides))


@pytest.mark.parametrize("config", CONFIGS)
def test_shipped_config_finds_its_folders(config: str) -> None:
    check("folders.json", config, folders(config))


@pytest.mark.parametrize("overrides", VARIANTS, ids=" ".join)
def test_variant_finds_its_folders(overrides: tuple[str, ...]) -> None:
    check("folders.json", " ".join(("quickstart", *overrides)), folders("quickstart", *overrides))


def test_recorded_configs_are_all_that_were_shipped() -> None:
    assert len(CONFIGS) == 5
    for name in CONFIGS:
        assert yaml.safe_load((GOLDEN / "configs" / f"{name}.yaml").read_text())["run"] == name


def test_controls_that_came_later_move_the_runs_that_they_change_and_no_other() -> None:
    def examples_of(*overrides: str) -> dict[str, Any]:
        config = loaded("quickstart", *overrides)
        [step, *_] = [s for s in all_steps(planned(config)) if s.name == "examples"]
        return dict(step.content)

    plain = ("synthesis.strategy=direct", "synthesis.guidelines_per_question=null")
    direct = examples_of(*plain)
    assert "version" not in direct, "no guideline is cited there"
    assert not {"questions", "min_votes", "max_examples"} & set(direct["examples"])
    assert direct["examples"]["min_vote_share"] == 0.0
    assert examples_of(*plain, "examples.verdict=unfiltered")["version"] == 2
    assert examples_of()["version"] == 2
    assert "version" not in examples_of("examples.drop_leaks=[hint]")
    by_vote = examples_of("examples.verdict=majority")["examples"]
    assert (by_vote["min_vote_share"], by_vote["min_votes"]) == (0.2, 2)
    as_before = examples_of("examples.verdict=majority", "examples.min_vote_share=0.0")["examples"]
    assert as_before["min_vote_share"] == 0.0
    assert "min_votes" not in as_before


def test_model_whose_turns_are_read_differently_moves_its_generations() -> None:
    config = loaded("quickstart")
    recipe = Recipe.load(0, config.synthesis)
    same, moved = (Model("m", "base", "cache", needs_turns=turns) for turns in (False, True))
    of_paths = paths.content(recipe, config.engine, same)
    assert paths.content(recipe, config.engine, moved) == of_paths | {"turns": paths.TURNS}
    asked = (config.evaluation, config.engine)
    of_predictions = predictions.content(*asked, same)
    assert predictions.content(*asked, moved) == of_predictions | {"turns": predictions.TURNS}


def test_run_without_a_training_question_is_refused() -> None:
    config = loaded("quickstart")
    counts = [each for each in facts_of(config).counts if each["split"] != "train"]
    nothing = replace(facts_of(config), counts=counts)
    base = Model("the base model", "base", "cache")
    with pytest.raises(InputError, match="train"):
        plan_run(config, Folder.open("/nowhere"), base, nothing)


def test_swap_between_questions_is_refused_where_a_dataset_has_one_question() -> None:
    config = loaded("quickstart", "synthesis.swap_adaptations=questions")
    base = Model("the base model", "base", "cache")
    plan_run(config, Folder.open("/nowhere"), base, facts_of(config))
    counts = [
        {**each, "num_kept": 1} if each["dataset"] == "products" else each
        for each in facts_of(config).counts
    ]
    lone = replace(facts_of(config), counts=counts)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="products has one training question"):
        plan_run(config, Folder.open("/nowhere"), base, lone)
    plan_run(loaded("quickstart"), Folder.open("/nowhere"), base, lone)


def test_settings_of_the_machine_move_no_folder() -> None:
    assert folders("quickstart") == folders("quickstart", *VARIANTS[-1])
    assert Path(folders("quickstart")[0][0]).name.startswith("questions-")


# --- what may be added without moving a folder --------------------------------------------------


def settings_classes(root: type[Settings] = Config) -> set[type[Settings]]:
    """The class of every branch of the config, at any depth, and the config's own."""
    found = {root}
    for field in root.model_fields.values():
        for child in _branches(field.annotation):
            found |= settings_classes(child)
    return found


def _branches(annotation: Any) -> Iterator[type[Settings]]:
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _branches(argument)


def with_later_field(value: Any, classes: set[type[Settings]], later: bool) -> Any:
    """The same settings, where those of `classes` have one more field, which came later."""
    if isinstance(value, dict):
        return {name: with_later_field(item, classes, later) for name, item in value.items()}
    if not isinstance(value, Settings):
        return value
    cls = type(value)
    items = {name: getattr(value, name) for name in cls.model_fields}
    fields = {name: with_later_field(item, classes, later) for name, item in items.items()}
    if cls not in classes:
        return cls.model_construct(**fields)
    field: Any = (Annotated[bool, Neutral(value=False)], True)
    more: Any = pydantic.create_model(cls.__name__, __base__=cls, came_later=field)
    return more.model_construct(**fields, came_later=later)


@pytest.mark.parametrize("config_name", ["quickstart", "school", "paper_mistral"])
def test_field_that_comes_later_moves_no_folder_while_it_is_neutral(config_name: str) -> None:
    config = loaded(config_name, "synthesis.expand_guidelines=2", "rounds=2")
    everything = settings_classes()
    assert len(everything) > 15
    assert folders_of(with_later_field(config, everything, later=False)) == folders_of(config)


@pytest.mark.parametrize(
    ("settings", "moved"),
    [
        (SamplingSettings, "paths"),
        (SynthesisSettings, "paths"),
        (EngineSettings, "paths"),
        (ExampleSettings, "examples"),
        (ContaminationSettings, "examples"),
        (TrainingSettings, "model"),
        (DpoSettings, "model"),
        (EvaluationSettings, "predictions"),
    ],
)
def test_field_that_comes_later_moves_what_it_decides_where_it_is_used(
    settings: type[Settings], moved: str
) -> None:
    config = loaded("quickstart")
    before = folders_of(config)
    after = folders_of(with_later_field(config, {settings}, later=True))
    assert next(old for old, new in zip(before, after, strict=True) if old != new)
    changed = {old[0].split("/")[-1].split("-")[0] for old in before if old not in after}
    assert moved in changed
    assert "questions" not in changed


def neutral_values(cls: type[Settings]) -> dict[str, Any]:
    """The fields of a class that came after commit 811bd38, and what reproduces the time before."""
    return {
        name: list(mark.value) if isinstance(mark.value, tuple) else mark.value  # as JSON has it
        for name, field in cls.model_fields.items()
        for mark in field.metadata
        if isinstance(mark, Neutral)
    }


def test_versions_and_neutral_values_are_those_that_were_written_down() -> None:
    """A change here has to be meant: it decides which steps of finished runs are made anew."""
    classes = sorted(settings_classes(), key=lambda cls: cls.__name__)
    named = {cls.__name__: neutral_values(cls) for cls in classes}
    steps = (questions, guidelines, paths, examples, model, predictions, scores)
    identity = {
        "versions": {step.__name__.rpartition(".")[2]: step.VERSION for step in steps}
        | {"grader": GRADER_VERSION},
        "neutral": {name: values for name, values in named.items() if values},
    }
    check("identity.json", "identity", identity)


def test_version_one_is_what_ran_before_there_were_versions() -> None:
    assert versioned({"a": 1}, 1) == {"a": 1}
    assert versioned({"a": 1}, 2) == {"a": 1, "version": 2}


def raise_version(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(f"pipelines.steps.{name}")
    monkeypatch.setattr(module, "VERSION", module.VERSION + 1)


@pytest.mark.parametrize("name", ["guidelines", "paths", "examples", "model", "predictions"])
def test_raised_version_moves_its_step_and_all_that_is_made_from_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = loaded("quickstart", "synthesis.expand_guidelines=2")
    before = folders_of(config)
    raise_version(name, monkeypatch)
    after = folders_of(config)
    moved = {old[0].split("/")[-1].split("-")[0] for old in before if old not in after}
    order = ["guidelines", "paths", "examples", "model"]
    made_from_it = set(order[order.index(name) :]) if name in order else set()
    assert moved == made_from_it | {"predictions", "scores"}


def test_statistic_that_is_corrected_reaches_finished_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    before = folders_of(loaded("quickstart"))
    raise_version("scores", monkeypatch)
    after = folders_of(loaded("quickstart"))
    assert [old[0].split("-")[0] for old in before if old not in after] == ["round_0/scores"]
