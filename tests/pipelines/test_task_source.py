"""Tasks in a config, and the lists and questions that the `tasks` command prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pydantic
import pytest

from cluster.errors import InputError
from cluster.settings import load_settings
from evaluation.question import SPLITS
from pipelines.questions.loading import QuestionSet, QuestionSettings, load_questions
from pipelines.questions.task_listing import format_task, format_tasks
from pipelines.steps.questions import summary


def settings_of(folder: Path, **datasets: Any) -> QuestionSettings:
    tree = {"folder": str(folder), "datasets": datasets}
    return QuestionSettings.model_validate_json(json.dumps(tree))


def load(folder: Path, **datasets: Any) -> QuestionSet:
    return load_questions(settings_of(folder, **datasets))


def task(name: str, path: str = ".", **more: Any) -> dict[str, Any]:
    source = {"kind": "task", "name": name, "path": path}
    return {"source": source | {k: more.pop(k) for k in ("splits",) if k in more}} | more


def write_gsm8k(folder: Path, num_train: int = 40, num_test: int = 3) -> None:
    for split, count in (("train", num_train), ("test", num_test)):
        rows = [{"question": f"{split} {n}?", "answer": f"#### {n}"} for n in range(count)]
        (folder / f"{split}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))


def test_task_is_read_and_its_missing_dev_carved_from_train(tmp_path: Path) -> None:
    write_gsm8k(tmp_path)
    loaded = load(tmp_path, gsm8k=task("gsm8k", dev_share=0.5))
    counts = {count["split"]: count["num_kept"] for count in loaded.counts}
    assert counts["test"] == 3
    assert counts["train"] + counts["dev"] == 40
    assert 10 < counts["dev"] < 30
    ids = [q.question_id for q in loaded.questions("test")]
    assert sorted(ids) == [f"gsm8k/test/{n:05d}" for n in range(3)]


def test_task_brings_its_own_domain_unless_the_config_says_another(tmp_path: Path) -> None:
    settings = settings_of(
        tmp_path,
        gsm8k=task("gsm8k"),
        held_out=task("gsm8k", domain="out_of_domain"),
        svamp=task("svamp"),
        files={"source": {"kind": "files", "train": "a.jsonl"}},
    )
    domains = {name: dataset.domain for name, dataset in settings.datasets.items()}
    assert domains == {
        "gsm8k": "in_domain",
        "held_out": "out_of_domain",
        "svamp": "out_of_domain",
        "files": "in_domain",
    }
    assert QuestionSettings.model_validate_json(settings.model_dump_json()) == settings


def test_task_out_of_domain_leaves_its_train_alone(tmp_path: Path) -> None:
    write_gsm8k(tmp_path)
    loaded = load(tmp_path, mine=task("gsm8k", domain="out_of_domain"))
    assert [count["split"] for count in loaded.counts] == ["test"]
    assert {q.dataset for q in loaded.questions(*SPLITS)} == {"mine"}


def test_chosen_splits_are_read_and_the_others_carved(tmp_path: Path) -> None:
    write_gsm8k(tmp_path)
    (tmp_path / "test.jsonl").unlink()
    loaded = load(tmp_path, gsm8k=task("gsm8k", splits=["train"], test_share=0.3))
    assert {count["split"] for count in loaded.counts} == {"train", "dev", "test"}


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        (task("gsm8"), r"no task 'gsm8' \(nearest: gsm8k\)"),
        (task("reasoning_gym:chain_sum"), "write source: .kind: reasoning_gym, family: chain_sum"),
        (task("bbh", domain="in_domain"), "bbh may not be trained on, because it carries the"),
        (task("svamp", domain="in_domain"), "a train split, but task svamp is read from test"),
        (task("gsm8k", splits=["test"]), "needs a train split"),
        (task("gsm8k", splits=["dev"]), "task gsm8k has no dev; it has train, test"),
        (task("gsm8k", splits=[]), "has no split to read"),
        (task("aqua", splits=["train"]), "out_of_domain has no train; take train out"),
        (task("svamp", num_train=3), "remove num_train"),
        (task("gsm8k", dev_share=0.6, test_share=0.5), "nothing to train on"),
    ],
)
def test_task_settings_that_do_not_fit_are_refused(
    tmp_path: Path, dataset: dict[str, Any], expected: str
) -> None:
    with pytest.raises(pydantic.ValidationError, match=expected):
        settings_of(tmp_path, mine=dataset)


def test_unknown_task_in_a_config_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("datasets: {mine: {source: {kind: task, name: gsm8}}}")
    with pytest.raises(InputError) as caught:
        load_settings(QuestionSettings, path)
    complaint = str(caught.value)
    assert "datasets.mine.source.name: no task 'gsm8' (nearest: gsm8k)" in complaint
    assert "more)" not in complaint


def test_wrong_row_of_a_task_ends_with_its_place(tmp_path: Path) -> None:
    write_gsm8k(tmp_path)
    (tmp_path / "test.jsonl").write_text('{"question": "?", "answer": "two"}')
    with pytest.raises(InputError, match=r"test\.jsonl:1, column 'answer'"):
        load(tmp_path, gsm8k=task("gsm8k"))


def test_wrong_rows_that_are_let_go_are_reported_by_dataset(tmp_path: Path) -> None:
    write_gsm8k(tmp_path)
    lines = ['{"question": "?", "answer": "two"}', '{"question": "!", "answer": "#### 2"}']
    (tmp_path / "test.jsonl").write_text("\n".join(lines))
    mine = task("gsm8k")
    mine["source"]["max_wrong_rows"] = 1
    loaded = load(tmp_path, gsm8k=mine)
    assert [q.question for q in loaded.questions("test")] == ["!"]
    (complaint,) = loaded.wrong_rows["gsm8k"]
    assert "test.jsonl:1, column 'answer' does not end with ####" in complaint
    assert f"questions: gsm8k: a row is SKIPPED: {complaint}" in summary(loaded.facts())
    assert "wrong: " + complaint in format_task("gsm8k", str(tmp_path))


def test_list_of_tasks_has_a_row_for_each_with_what_is_known() -> None:
    table = [line.strip("| ").split("|") for line in format_tasks().splitlines()]
    rows = {row[0].strip(): [cell.strip() for cell in row] for row in table}
    cells = ["7,473", "-", "1,319", "number", "mathematics", "in_domain", "MIT", "yes"]
    assert rows["gsm8k"] == ["gsm8k", *cells]
    assert rows["bbh"][-2:] == ["MIT, with a canary", "no"]
    assert "research only" in rows["anli"][-2]
    assert "?" in rows["numglue"]
    assert "reasoning_gym:<family>" in rows


def test_task_is_shown_as_the_model_sees_it(tmp_path: Path) -> None:
    write_gsm8k(tmp_path, num_train=5)
    shown = format_task("gsm8k", str(tmp_path))
    assert "train: 5 questions (5 number); published: 7,473" in shown
    assert shown.count("=== gsm8k/train/") == 3
    assert "train 0?\n\nThink it through step by step. End with the final answer" in shown
    assert "--- truth (number): 2" in shown


def test_split_that_is_not_there_is_said_and_not_hidden(tmp_path: Path) -> None:
    write_gsm8k(tmp_path)
    (tmp_path / "train.jsonl").unlink()
    shown = format_task("gsm8k", str(tmp_path))
    assert "train: no train file of task gsm8k" in shown
    assert "=== gsm8k/test/00000" in shown
    with pytest.raises(InputError, match="no train file"):
        format_task("gsm8k", str(tmp_path), ["train"])
    (tmp_path / "test.jsonl").unlink()
    with pytest.raises(InputError, match="no test file"):
        format_task("gsm8k", str(tmp_path))


@pytest.mark.parametrize("family", ["chain_sum", "spell_backward"])
def test_generated_family_is_shown_whatever_its_answers_are(family: str) -> None:
    shown = format_task(f"reasoning_gym:{family}")
    assert shown.count(f"=== {family}/test/") == 3


def test_unknown_family_names_the_nearest() -> None:
    with pytest.raises(InputError, match="'chain_sums'; nearest: chain_sum"):
        format_task("reasoning_gym:chain_sums")


def test_question_shown_cannot_command_the_terminal(tmp_path: Path) -> None:
    row = {"question": "Red \x1b[31m\x07 hens?\nHow many?", "answer": "#### 2"}
    (tmp_path / "test.jsonl").write_text(json.dumps(row) + "\n")
    shown = format_task("gsm8k", str(tmp_path), ["test"])
    assert "Red \\x1b[31m\\x07 hens?\nHow many?" in shown
    assert not {"\x1b", "\x07"} & set(shown)
