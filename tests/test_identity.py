"""The folders of a run's steps: whoever upgrades finds what was generated before.

`tests/golden/folders.json` holds, for the shipped configs of commit 811bd38 and for variants of
one of them, the name and the extent of each step as that commit laid them out. A folder that moves
makes its users generate everything again, so it may only move where the step means something else
now; then the step's VERSION is raised and the file is recorded anew::

    REGENESIS_RECORD_GOLDEN=1 python -m pytest tests/test_identity.py
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cluster.models import Model
from cluster.settings import load_settings
from cluster.storage import Folder
from pipelines.config import Config
from pipelines.plan import all_steps, plan_run, step_names
from pipelines.questions import QuestionFacts
from pipelines.strategy import with_strategy
from tests.test_golden import GOLDEN, check

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
    extents = {"train": "000000000001", "dev,test": "000000000002"}
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


def folders(config_name: str, *overrides: str) -> list[list[str]]:
    """The path and the extent of each step."""
    path = GOLDEN / "configs" / f"{config_name}.yaml"
    config = load_settings(Config, path, overrides, with_strategy)
    base = Model("the base model", "base", "cache")
    run = plan_run(config, Folder.open("/nowhere"), base, facts_of(config))
    return [[name, step.extent] for name, step in zip(step_names(run), all_steps(run), strict=True)]


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


def test_settings_of_the_machine_move_no_folder() -> None:
    assert folders("quickstart") == folders("quickstart", *VARIANTS[-1])
    assert Path(folders("quickstart")[0][0]).name.startswith("questions-")
