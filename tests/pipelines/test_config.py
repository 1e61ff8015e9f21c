"""Rules across the branches of the config, which every command obeys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.errors import InputError
from pipelines.config import RULES, Config, load_config, warnings_of
from regenesis import main
from tests.conftest import arithmetic

BROKEN: dict[str, tuple[tuple[str, ...], str]] = {
    "one_model_is_decided_about": (
        ("after_round.stop.no_gain=2", "training.mix=per_dataset"),
        "after_round decides about one model",
    ),
    "gate_tasks_are_datasets": (
        ("after_round.gate={tasks: [elsewhere]}",),
        "after_round.gate.tasks: there is no dataset elsewhere",
    ),
    "readings_are_made": (
        ("after_round.reading=forced",),
        "after_round.reading: forced needs evaluation.readings: true",
    ),
    "one_model_goes_on": (
        ("rounds=2", "training.mix=per_dataset"),
        "rounds: 2 needs one model to continue with",
    ),
    "thinking_stays_whole": (
        ("examples.thinking=keep", "training.too_long=truncate"),
        "could cut through the thinking",
    ),
    "preferences_know_wrong_paths": (
        ("training.objective=dpo", "examples.verdict=unfiltered"),
        "does not distinguish them",
    ),
    "something_is_trained_on": (
        ("questions.datasets.sums.domain=out_of_domain", "questions.datasets.sums.num_train=null"),
        "set a dataset's domain to in_domain",
    ),
    "hints_need_the_truth": (
        ("synthesis.hint_stages=[path]", "examples.verdict=majority"),
        "hint_stages shows the ground truth",
    ),
    "retries_are_made": (
        ("examples.retries=unhinted",),
        "needs tries that synthesis.unhinted_retries generates",
    ),
    "unlabelled_questions_need_a_vote": (
        (
            "questions.datasets.bare.source={kind: files, train: a, columns: {answer: null}}",
            "questions.datasets.bare.dev_share=0.0",
        ),
        "datasets.bare has no answers",
    ),
}


def tree(tmp_path: Path) -> dict[str, Any]:
    return {
        "run": "r",
        "model": {"path": "no/such/model"},
        "questions": {"datasets": arithmetic("sums", 0, num_train=1, num_dev=0, num_test=1)},
        "storage": {"root": str(tmp_path)},
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(tree(tmp_path)))
    return file


def test_every_rule_has_a_config_that_breaks_it() -> None:
    assert [rule.__name__ for rule in RULES] == list(BROKEN)


@pytest.mark.parametrize("rule", BROKEN)
def test_rule_is_broken_by_its_settings_together_only(rule: str, path: Path) -> None:
    overrides, sentence = BROKEN[rule]
    with pytest.raises(InputError, match=sentence) as caught:
        load_config(path, overrides)
    assert "config:" not in str(caught.value), "the sentence names its fields itself"
    alone = (
        *("gate_tasks_are_datasets", "something_is_trained_on"),
        *("readings_are_made", "retries_are_made", "unlabelled_questions_need_a_vote"),
    )
    if rule in alone:
        return  # each breaks it by itself, or makes no sense without the others
    for one in overrides:
        load_config(path, [one])


@pytest.mark.parametrize("rule", BROKEN)
@pytest.mark.parametrize("command", ["run", "dry run", "plan", "select"])
def test_every_command_obeys_the_rules_before_it_does_anything(
    command: str,
    rule: str,
    path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    overrides, sentence = BROKEN[rule]
    stored = tmp_path / "stored"
    stored.mkdir()
    (stored / "steps.json").write_text(json.dumps(["questions-1"]))
    (stored / "config.yaml").write_text(
        yaml.safe_dump(load_config(path).model_dump(mode="json"), sort_keys=False)
    )
    words = {
        "run": ["run", str(path)],
        "dry run": ["run", str(path), "--dry-run"],
        "plan": ["plan", str(path)],
        "select": ["select", str(stored)],
    }[command]
    sets = [word for one in overrides for word in ("--set", one)]
    assert main([*words, *sets]) == 2
    written = capsys.readouterr()
    assert sentence in written.err
    assert written.err.count("\n") == 1
    assert not (tmp_path / "r").exists()


def test_what_is_slow_is_warned_of_and_allowed(path: Path) -> None:
    slow = ("synthesis.stages.adapt.top_p=0.9", "engine.use_gpu=false")
    [warning] = warnings_of(load_config(path, slow))
    assert "top_p" in warning
    assert warnings_of(load_config(path)) == []


def test_config_is_read_again_from_what_was_written_down(path: Path) -> None:
    config = load_config(path, ["synthesis.strategy=lmsi", "questions.datasets.sums.num_dev=3"])
    again = Config.model_validate_json(json.dumps(config.model_dump(mode="json")))
    assert again == config
