"""The `questions` step: stored once, and read again only when its input has changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cluster.errors import InputError
from cluster.settings import fingerprint
from cluster.store.folder import Folder
from evaluation.question import SPLITS
from pipelines.questions.loading import QuestionFacts, QuestionSettings, load_questions
from pipelines.steps import questions as questions_step
from pipelines.steps.questions import questions_origin, step_of, store_questions
from tests.conftest import arithmetic


def write_rows(folder: Path, name: str, *answers: int) -> None:
    rows = [{"id": f"q{n}", "question": f"How much is {n}?", "answer": n} for n in answers]
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def settings_of(folder: Path, **datasets: Any) -> QuestionSettings:
    columns = {"answer_type": None, "choices": None}
    source = {"kind": "files", "train": "a.jsonl", "answer_type": "number", "columns": columns}
    own = {"a": {"source": source, "dev_share": 0.2}}
    tree = {"folder": str(folder), "datasets": own | datasets, "on_error": "skip"}
    return QuestionSettings.model_validate_json(json.dumps(tree))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_rows(tmp_path, "a.jsonl", *range(20))
    return tmp_path


@pytest.fixture
def run(tmp_path: Path) -> Folder:
    return Folder.open(str(tmp_path / "run"))


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[QuestionSettings]:
    """The settings of each time that questions were truly loaded."""
    made: list[QuestionSettings] = []

    def load(settings: QuestionSettings, *args: Any) -> Any:
        made.append(settings)
        return load_questions(settings, *args)

    monkeypatch.setattr(questions_step, "load_questions", load)
    return made


def store(settings: QuestionSettings, run: Folder) -> QuestionFacts:
    return store_questions(settings, run, "mine", 10.0)


def test_questions_are_stored_with_their_facts_in_the_manifest(folder: Path, run: Folder) -> None:
    settings = settings_of(folder, **arithmetic("sums", 0, num_train=4, num_dev=0, num_test=2))
    facts = store(settings, run)
    loaded = load_questions(settings)
    assert facts == loaded.facts()
    step = step_of(run, facts)
    assert step.folder.read_table().equals(loaded.table)
    manifest = step.manifest()
    assert manifest is not None
    assert manifest["num_questions"] == 26
    assert manifest["counts"] == facts.counts
    for splits in (("train",), ("dev", "test"), SPLITS):
        assert facts.extent(*splits) == loaded.extent(*splits)
        expected = {"a": 0, "sums": 0}
        for question in loaded.questions(*splits):
            expected[question.dataset] += 1
        assert facts.num_kept(*splits) == {name: n for name, n in expected.items() if n}


def test_overlaps_are_stored_beside_the_questions(folder: Path, run: Folder) -> None:
    write_rows(folder, "t.jsonl", 3, 50)
    columns = {"answer_type": None, "choices": None}
    source = {"kind": "files", "test": "t.jsonl", "answer_type": "number", "columns": columns}
    settings = settings_of(folder, b={"source": source, "domain": "out_of_domain"})
    step = step_of(run, store(settings, run))
    pairs = step.folder.child(questions_step.OVERLAPS).read_table().to_pylist()
    assert [(p["question_id"], p["held_out_id"], p["rule"]) for p in pairs] == [
        ("a/train/q3", "b/test/q3", "exact")
    ]
    assert step.content["version"] == questions_step.VERSION


def test_questions_of_unchanged_files_are_not_read_again(
    folder: Path, run: Folder, loads: list[QuestionSettings]
) -> None:
    settings = settings_of(folder)
    first = store(settings, run)
    assert store(settings, run) == first
    assert len(loads) == 1


@pytest.mark.parametrize(
    "change",
    ["file", "limit", "step gone", "step flipped", "facts torn", "facts altered", "reader"],
)
def test_questions_are_read_again_when_anything_changed(
    folder: Path,
    run: Folder,
    loads: list[QuestionSettings],
    monkeypatch: pytest.MonkeyPatch,
    change: str,
) -> None:
    settings = settings_of(folder)
    first = store(settings, run)
    if change == "file":
        write_rows(folder, "a.jsonl", *range(21))
    elif change == "limit":
        limited = settings.datasets["a"].model_copy(update={"num_train": 3})
        settings = settings.model_copy(update={"datasets": {"a": limited}})
    elif change == "step gone":
        step_of(run, first).folder.delete()
    elif change == "step flipped":
        path = Path(step_of(run, first).folder.path) / "questions.parquet"
        path.write_bytes(path.read_bytes().replace(b"a", b"e", 1))
    elif change == "facts torn":
        run.write_bytes("questions.json", b'{"origin": "3f')
    elif change == "facts altered":
        known = run.read_bytes("questions.json")
        run.write_bytes("questions.json", known.replace(b'"num_kept": ', b'"num_kept": 1', 1))
    else:
        monkeypatch.setattr(questions_step, "VERSION", 99)
    again = store(settings, run)
    assert len(loads) == 2
    assert again == load_questions(settings).facts()
    assert step_of(run, again).is_done
    assert (again == first) == (change not in ("file", "limit"))


def test_questions_of_an_earlier_version_without_the_extent_of_dev_are_read_again(
    folder: Path, run: Folder, loads: list[QuestionSettings]
) -> None:
    settings = settings_of(folder)
    first = store(settings, run)
    known: dict[str, Any] = run.read_json("questions.json") or {}
    del known["facts"]["extents"]["dev"], known["fingerprint"]
    run.write_json("questions.json", known | {"fingerprint": fingerprint(known)})
    assert store(settings, run) == first
    assert len(loads) == 2


def test_same_questions_of_another_origin_leave_the_stored_ones_as_they_are(
    folder: Path, run: Folder, loads: list[QuestionSettings]
) -> None:
    settings = settings_of(folder)
    step = step_of(run, store(settings, run))
    before = step.manifest()
    (folder / "a.jsonl").write_text((folder / "a.jsonl").read_text().replace("}", " }"))
    assert step_of(run, store(settings, run)) == step
    assert len(loads) == 2
    assert step.manifest() == before


def test_dataset_that_was_set_aside_is_tried_again(
    folder: Path, run: Folder, loads: list[QuestionSettings]
) -> None:
    source = {"kind": "files", "train": "b.jsonl", "answer_type": "number"}
    columns = {"answer_type": None, "choices": None}
    settings = settings_of(folder, b={"source": source | {"columns": columns}, "dev_share": 0})
    assert "b.jsonl" in store(settings, run).broken["b"]
    told = questions_step.summary(store(settings, run)).splitlines()
    assert told[-1].startswith("questions: b is SKIPPED: no question file")
    assert len(loads) == 2
    write_rows(folder, "b.jsonl", *range(100, 105))
    assert store(settings, run).num_kept("train")["b"] == 5


def test_origin_is_unknown_for_a_hub_and_a_task_and_a_missing_file(folder: Path) -> None:
    assert questions_origin(settings_of(folder)) is not None
    hub = {"kind": "files", "train": "train", "hub": {"repository": "openai/gsm8k"}}
    task = {"kind": "task", "name": "gsm8k", "path": str(folder)}
    missing = {"kind": "files", "train": "gone.jsonl"}
    for source in (hub, task, missing):
        assert questions_origin(settings_of(folder, other={"source": source})) is None


def test_unwritable_folder_is_refused_by_name(folder: Path) -> None:
    (folder / "taken").write_text("a file")
    with pytest.raises(InputError, match=r"taken cannot be"):
        store(settings_of(folder), Folder.open(str(folder / "taken")))


def test_bad_questions_leave_no_folder(folder: Path, run: Folder) -> None:
    (folder / "a.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match=r"a\.jsonl:1"):
        store(settings_of(folder), run)
    assert not Path(run.path).exists()


def test_folder_of_another_run_is_refused(folder: Path, run: Folder) -> None:
    store(settings_of(folder), run)
    write_rows(folder, "a.jsonl", *range(21))
    with pytest.raises(InputError, match="holds something else"):
        store_questions(settings_of(folder), run, "other", 10.0)


def test_stored_questions_can_be_read_by_columns(folder: Path, run: Folder) -> None:
    step = step_of(run, store(settings_of(folder), run))
    path = Path(step.folder.path) / questions_step.QUESTIONS_FILE
    assert pq.read_table(path, columns=["question_id"]).num_rows == 20
