from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import InputError
from cluster.inference.engine import EndpointSettings
from cluster.settings import content_of, fingerprint, load_settings, settings_of
from pipelines.config import Config
from pipelines.strategy import with_strategy
from tests.conftest import REPOSITORY, arithmetic

WriteConfig = Callable[[dict[str, Any]], Path]

TREE: dict[str, Any] = {
    "run": "r",
    "model": {"path": "m"},
    "questions": {"datasets": arithmetic("sums", 0, num_train=1, num_dev=0, num_test=1)},
}
CONFIGS = sorted((REPOSITORY / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_every_file_in_the_repository_loads(path: Path) -> None:
    assert load_settings(Config, path).run


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("training.learning_rat=1", "unknown setting training.learning_rat; did you mean"),
        ("trainin.seed=1", "did you mean training?"),
        ("rounds=two", "rounds: input should be a valid integer (given: 'two')"),
        ("rounds=0", "rounds: input should be greater than 0 (given: 0)"),
        ("training.learning_rate=fast", "training.learning_rate: input should be a valid number"),
        ("training.learning_rate=.nan", "training.learning_rate"),
        ("run=a/b", "run: "),
        ("engine.use_gpu=maybe", "engine.use_gpu: input should be a valid boolean"),
        ("questions.datasets.sums.sorce=1", "did you mean questions.datasets.sums.source?"),
        ("questions.datasets.sums.source.famly=x", "questions.datasets.sums.source.family?"),
        ("examples.read_last=[numbr]", "examples.read_last.0"),
        ("model=x", "model: "),
        ("run=..", "run: '..' is not allowed here; it has to match"),
        (
            "questions.datasets.sums.grader=nowhere.at_all:grade",
            "questions.datasets.sums.grader: the grader 'nowhere.at_all:grade' cannot be imported: "
            "No module named 'nowhere'; install its package",
        ),
        ("questions.datasets.sums.grader=grade", "questions.datasets.sums.grader: the grader"),
        ("synthesis.stages.path.temperature=-1", "synthesis.stages.path.temperature"),
        ("engine.options={a: {b: [.inf]}}", "engine.options.a.b.0: input should be a finite"),
        ("engine.options={a: .nan}", "engine.options.a: input should be a finite number"),
        ("training.lora.target_modules=3", "input should be 'all-linear' or a list (given: 3)"),
        ("training.lora.target_modules=[3]", ".target_modules.0: input should be a valid string"),
        ("questions.datasets.sums.source.kind=file", "source.kind: input should be one of 'files'"),
        ("engine=[]", "engine: input should be a mapping (given: [])"),
    ],
)
def test_config_wrong_value_names_field_and_what_to_do(
    write_config: WriteConfig, override: str, expected: str
) -> None:
    path = write_config(TREE)
    with pytest.raises(InputError) as caught:
        load_settings(Config, path, [override])
    message = str(caught.value)
    assert expected in message
    assert message.startswith(f"--set {override.partition('=')[0]}: ")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ({"train": 3}, "files.source.train: input should be a valid string or a list (given: 3)"),
        ({"train": [3]}, "files.source.train.0: input should be a valid string (given: 3)"),
        (
            {"trian": "a.jsonl"},
            "unknown setting {}files.source.trian; did you mean {}files.source.",
        ),
        (
            {"answer_map": {"a": []}},
            "files.source.answer_map.a: input should be a valid boolean or",
        ),
        ({"hub": {}}, "files.source.hub.repository is missing"),
        ({"kind": None}, "files.source.kind: input should be one of"),
    ],
)
def test_config_field_is_named_as_the_user_wrote_it(source: dict[str, Any], expected: str) -> None:
    """A dataset may be named like a member of a union, whose names pydantic adds."""
    dataset = {"source": {"kind": "files", "test": "t.jsonl"} | source}
    tree = TREE | {"questions": {"datasets": {"files": dataset}}}
    with pytest.raises(InputError) as caught:
        settings_of(Config, tree, "T")
    start = "questions.datasets."
    whole = expected.format(start, start) if "{}" in expected else f"{start}{expected}"
    assert str(caught.value).startswith(f"T: {whole}")
    assert "(and" not in str(caught.value)


def test_config_source_without_its_kind_is_refused() -> None:
    tree = TREE | {"questions": {"datasets": {"sums": {"source": {"train": "t.jsonl"}}}}}
    with pytest.raises(
        InputError, match=r"^T: questions\.datasets\.sums\.source\.kind is missing$"
    ):
        settings_of(Config, tree, "T")


@pytest.mark.parametrize("name", ["3", "[star]", "{a: b}"])
def test_config_strategy_that_is_no_name_is_refused(write_config: WriteConfig, name: str) -> None:
    with pytest.raises(InputError, match=r"--set synthesis\.strategy: there is no "):
        load_settings(Config, write_config(TREE), [f"synthesis.strategy={name}"], with_strategy)


def test_config_mistake_is_said_of_the_file_or_of_the_override_that_made_it(
    write_config: WriteConfig,
) -> None:
    def said(*overrides: str, **tree: Any) -> str:
        path = write_config(TREE | tree)
        with pytest.raises(InputError) as caught:
            load_settings(Config, path, overrides, with_strategy)
        return str(caught.value).replace(str(path), "FILE")

    both = ("training.seed=3", "training.max_length=-1", "engine.use_gpu=false")
    assert said(*both).startswith("--set training.max_length: input should be")
    assert said("training.seed=3", train=1).startswith("FILE: unknown setting train")
    twice = said("engine.use_gpu=maybe", train=1)
    assert twice.startswith("FILE: unknown setting train")
    assert said("synthesis.strategy=stair").startswith("--set synthesis.strategy: there is no")
    across = said("examples.verdict=majority", "synthesis.hint_stages=[path]")
    assert across.startswith("--set synthesis.hint_stages: ")


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("training.lr=1e-5", "did you mean training.learning_rate?"),
        ("training.learning_rat=1", "did you mean training.learning_rate?"),
        ("training.batch=1", "known here: "),
        ("training.ga=1", "known here: "),
    ],
)
def test_config_guess_is_near_or_none(write_config: WriteConfig, override: str, hint: str) -> None:
    with pytest.raises(InputError, match=re.escape(hint)):
        load_settings(Config, write_config(TREE), [override])


@pytest.mark.parametrize("override", ["rounds", "=1", "a..b=1", "rounds=[1", "run.name=x"])
def test_config_malformed_override_is_refused(write_config: WriteConfig, override: str) -> None:
    with pytest.raises(InputError, match="--set"):
        load_settings(Config, write_config(TREE), [override])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1", "line 1: this is not YAML"),
        ("- 1", "expected settings"),
        ("", "found nothing"),
        ("run: a\nrun: b", "line 2: .*'run' is given twice, first in line 1"),
        ("a:\n  b: 1\n  c: 2\n  b: 3", "line 4: .*'b' is given twice, first in line 2"),
        ("run: !!binary YQ==", "quote it"),
        ("run: a\x07", r"broken\.yaml: this is not YAML: .*; correct the file"),
    ],
)
def test_config_broken_file_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=expected):
        load_settings(Config, path)


def test_folder_in_place_of_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder; name a YAML file"):
        load_settings(Config, tmp_path)


def test_config_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"run: {name: caf\xe9}")
    with pytest.raises(InputError, match=r"cannot read .*latin\.yaml"):
        load_settings(Config, path)


def test_config_date_is_a_text(write_config: WriteConfig) -> None:
    config = load_settings(Config, write_config(TREE), ["run=2024-01-01"])
    assert config.run == "2024-01-01"


def test_config_missing_file_names_those_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "there.yaml").write_text("run: a")
    with pytest.raises(InputError, match=r"no config file .*gone\.yaml; there are .*there\.yaml"):
        load_settings(Config, tmp_path / "gone.yaml")


def test_override_scientific_notation_is_a_number(write_config: WriteConfig) -> None:
    config = load_settings(Config, write_config(TREE), ["training.learning_rate=1e-6", "rounds=2"])
    assert config.training.learning_rate == 1e-6
    assert config.rounds == 2


def test_content_leaves_out_extent_and_operational_settings(write_config: WriteConfig) -> None:
    path = write_config(TREE)
    before = load_settings(Config, path)
    operational = load_settings(Config, path, ["engine.chunk_size=99", "engine.max_num_seqs=99"])
    content = load_settings(Config, path, ["engine.dtype=float32"])
    assert content_of(operational.engine) == content_of(before.engine)
    assert content_of(content.engine) != content_of(before.engine)
    assert fingerprint(content_of(before.engine)) == fingerprint(content_of(operational.engine))


def test_config_import_and_dry_run_load_no_heavy_library(
    scripted_config: dict[str, Any], write_config: WriteConfig
) -> None:
    path = write_config(scripted_config)
    program = (
        "import sys, regenesis\n"
        f"code = regenesis.main(['run', {str(path)!r}, '--dry-run'])\n"
        "heavy = {'torch', 'vllm', 'deepspeed', 'transformers', 'ray'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else code)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    # 24 questions x 3 guidelines x 3 stages, and 16 held-out questions for either model.
    assert "216 generations" in result.stdout
    assert result.stdout.count("16 generations") == 3


def test_settings_from_elsewhere_name_their_place_and_what_is_missing() -> None:
    with pytest.raises(InputError, match=r"^--model a: url is missing"):
        settings_of(EndpointSettings, {"model": "m"}, "--model a")
