"""The sheet for people, what is read back of it, and the vetoes that the examples honour."""

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
from selenium.webdriver.common.action_chains import ActionChains

from cluster.errors import InputError
from cluster.inference.schedule import Questions
from cluster.models.model import Model
from cluster.settings import content_of
from cluster.store.cleanup import find_leftovers
from evaluation.statistics import wilson_interval
from pipelines.judging.sheet import blind_id, make_sheet
from pipelines.selection.filters import ExampleSettings
from pipelines.selection.select_examples import select_step_examples
from pipelines.stored_run import StoredRun
from pipelines.synthesis.reasoning_path import ReasoningPath
from regenesis import main
from tests.commands.conftest import copied_run as copied_run
from tests.finished_run import FinishedRun, folder_of
from tests.report.browser import Browser
from tests.report.test_paths import wait_for

Copy = Callable[[], FinishedRun]
Capture = pytest.CaptureFixture[str]


def verdicts_of(run: FinishedRun) -> dict[str, str]:
    return {path["path_id"]: path["verdict"] for row in run.rows for path in row["paths"]}


def judged(sheet: dict[str, Any], valid: Callable[[int], str]) -> dict[str, Any]:
    """The file that a person would save who answers so."""
    return {
        "format": "regenesis judgements",
        "version": 1,
        "sheet": sheet["sheet"],
        "judge": "A",
        "judgements": [
            {"id": item["id"], "fingerprint": item["fingerprint"], "valid": valid(n), "note": "n"}
            for n, item in enumerate(sheet["items"])
        ],
    }


def written(folder: Path, content: Any) -> str:
    file = folder / "judgements.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(file)


def imported(run: FinishedRun, folder: Path, valid: Callable[[int], str]) -> Path:
    """The table of judgements of a sheet of 12 paths."""
    sheet = make_sheet(StoredRun.read(run.folder), 12, seed=1)
    assert main(["judge-import", run.folder.uri, written(folder, judged(sheet, valid))]) == 0
    [table] = Path(run.folder.path, "judgements").glob("*.parquet")
    return table


# --- the sheet ---------------------------------------------------------------------------------


def test_sheet_is_drawn_by_its_seed_from_right_and_wrong_paths(finished_run: FinishedRun) -> None:
    run = StoredRun.read(finished_run.folder)
    texts = {
        path["reasoning"]: path["verdict"] for row in finished_run.rows for path in row["paths"]
    }
    sheet = make_sheet(run, 20, seed=3)
    assert sheet == make_sheet(run, 20, seed=3)
    assert sheet["sheet"] != make_sheet(run, 20, seed=4)["sheet"]
    assert len({item["id"] for item in sheet["items"]}) == 20
    right = [texts[item["reasoning"]] == "correct" for item in sheet["items"]]
    assert sum(right) == 10
    assert right != sorted(right)
    assert right != sorted(right, reverse=True)
    paths = [ReasoningPath.from_row(path) for row in finished_run.rows for path in row["paths"]]
    finished = {blind_id(path.path_id) for path in paths if path.is_finished and not path.error}
    assert {item["id"] for item in make_sheet(run, 10**6, seed=0)["items"]} == finished


def test_sheet_tells_no_verdict_guideline_model_or_round(
    finished_run: FinishedRun, tmp_path: Path
) -> None:
    file = tmp_path / "judge.html"
    assert main(["judge", finished_run.folder.uri, "--number", "10", "-o", str(file)]) == 0
    data = file.read_text().partition('id="data-sheet">')[2].partition("</script>")[0]
    sheet = json.loads(data)
    assert {key for item in sheet["items"] for key in item} == {
        *("id", "fingerprint", "question", "reasoning")
    }
    guidelines = {path["guideline_id"] for row in finished_run.rows for path in row["paths"]}
    told = [
        sheet["sheet"],
        *(item[key] for item in sheet["items"] for key in ("id", "fingerprint")),
    ]
    for secret in (*guidelines, *verdicts_of(finished_run), "correct", "regenesis", "round"):
        assert not any(secret in text for text in told)


def test_judgements_are_made_by_keys_and_saved(
    finished_run: FinishedRun, tmp_path: Path, chromium: Browser, capsys: Capture
) -> None:
    file = tmp_path / "judge.html"
    assert main(["judge", finished_run.folder.uri, "--number", "6", "-o", str(file)]) == 0
    chromium.open(file)
    wait_for(lambda: "0 of 6 judged" in chromium.text(".status"))
    keys = ActionChains(chromium.driver)
    chromium.run("document.querySelector('.card').focus()")
    keys.send_keys("y", "j", "n", "j", "u", "k", "k", "n").perform()
    assert "3 of 6 judged" in chromium.text(".status")
    chromium.run("document.querySelectorAll('.card textarea')[1].value = '=1'")
    chromium.run("document.querySelectorAll('.card textarea')[1].dispatchEvent(new Event('input'))")
    chromium.run("document.querySelector('.sticky button').click()")
    saved = wait_for(lambda: list(chromium.downloads.glob("judgements-*.json")))[0]
    read = json.loads(saved.read_text())
    assert [each["valid"] for each in read["judgements"]] == ["no", "no", "unsure"]
    assert read["judgements"][1]["note"] == "=1"
    run = finished_run.folder.uri
    capsys.readouterr()
    table = Path(finished_run.folder.path, "judgements")
    try:
        assert main(["judge-import", run, str(saved)]) == 0
        assert "leaves out the 2 paths" in capsys.readouterr().out
    finally:  # other tests share the run
        for each in table.glob("*"):
            each.unlink()
        table.rmdir()


# --- what is read back -------------------------------------------------------------------------


def test_rates_are_those_of_the_judgements(
    copied_run: Copy, tmp_path: Path, capsys: Capture
) -> None:
    run = copied_run()
    answers = ["yes", "yes", "no", "unsure"]
    sheet = make_sheet(StoredRun.read(run.folder), 12, seed=1)
    file = written(tmp_path, judged(sheet, lambda n: answers[n % 4]))
    capsys.readouterr()
    assert main(["judge-import", run.folder.uri, file, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    rows = pq.read_table(facts["file"]).to_pylist()
    verdicts = verdicts_of(run)
    assert len(rows) == 12
    assert all(row["verdict"] == verdicts[row["path_id"]] for row in rows)
    counts = Counter((row["verdict"], row["valid"]) for row in rows)
    for rate in facts["rates"][:-1]:
        yes, no = counts[rate["verdict"], "yes"], counts[rate["verdict"], "no"]
        assert (rate["yes"], rate["no"]) == (yes, no)
        assert (rate["low"], rate["high"]) == wilson_interval(yes, yes + no)
    assert facts["rates"][-1]["judged"] == 12
    assert facts["rates"][-1]["valid_share"] == 6 / 9
    assert facts["num_vetoed"] == 3
    assert main(["judge-import", run.folder.uri, file]) == 0  # replaces the same judgements
    assert "| all " in capsys.readouterr().out
    assert len(list(Path(run.folder.path, "judgements").glob("*.parquet"))) == 1


def test_clean_leaves_judgements_alone_and_damage_to_them_is_found(
    copied_run: Copy, tmp_path: Path, capsys: Capture
) -> None:
    run = copied_run()
    table = imported(run, tmp_path, lambda n: "yes")
    leftovers = find_leftovers(run.folder, superseded=True)
    assert not any("judgements" in each.folder.path for each in leftovers)
    table.write_bytes(table.read_bytes()[:-8] + b"damaged!")
    capsys.readouterr()
    sheet = make_sheet(StoredRun.read(run.folder), 3, seed=9)
    file = written(tmp_path, judged(sheet, lambda n: "yes"))
    assert main(["judge-import", run.folder.uri, file]) == 2
    assert f"{table.name} is damaged" in capsys.readouterr().err


def sheet_with(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
    def changed(content: dict[str, Any]) -> Any:
        change(content)
        return content

    return changed


BAD_FILES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "not JSON": (lambda c: "{", "is not JSON"),
    "too deep": (lambda c: "[" * 100_000, "is not JSON"),
    "another file": (lambda c: [1], "is no file of judgements"),
    "another version": (sheet_with(lambda c: c.update(version=9)), "has version 9"),
    "no sheet": (sheet_with(lambda c: c.pop("sheet")), "does not name its sheet"),
    "empty": (sheet_with(lambda c: c.update(judgements=[])), "has no judgement"),
    "no object": (sheet_with(lambda c: c["judgements"].append(3)), "it is not an object"),
    "no id": (sheet_with(lambda c: c["judgements"][0].update(id=None)), "its id is not a text"),
    "other answer": (
        sheet_with(lambda c: c["judgements"][0].update(valid="maybe")),
        "valid is 'maybe' and not one of yes, no, unsure",
    ),
    "long note": (
        sheet_with(lambda c: c["judgements"][0].update(note="x" * 10_001)),
        "its note is not a text of at most 10000 characters",
    ),
    "twice": (
        sheet_with(lambda c: c["judgements"].append(c["judgements"][0])),
        "is judged twice",
    ),
    "another run": (
        sheet_with(lambda c: c["judgements"][0].update(id="0" * 16)),
        "1 of 4 judgements are of paths that the run",
    ),
    "another text": (
        sheet_with(lambda c: c["judgements"][0].update(fingerprint="0" * 16)),
        "has another text than the one that was judged",
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file_is_refused_in_one_sentence(
    name: str, finished_run: FinishedRun, tmp_path: Path, capsys: Capture
) -> None:
    change, expected = BAD_FILES[name]
    sheet = make_sheet(StoredRun.read(finished_run.folder), 4, seed=0)
    file = written(tmp_path, change(judged(sheet, lambda n: "no")))
    capsys.readouterr()
    assert main(["judge-import", finished_run.folder.uri, file]) == 2
    said = capsys.readouterr().err
    assert expected in said
    assert said.count("\n") == 1
    assert not Path(finished_run.folder.path, "judgements").exists()


def test_file_that_no_sheet_can_have_saved_is_not_read(
    finished_run: FinishedRun, tmp_path: Path, capsys: Capture
) -> None:
    with (tmp_path / "judgements.json").open("wb") as file:
        file.truncate(20_000_001)
    given = str(tmp_path / "judgements.json")
    assert main(["judge-import", finished_run.folder.uri, given]) == 2
    assert f"{given} is too large for a file of judgements" in capsys.readouterr().err


def test_run_without_a_finished_path_has_no_sheet(
    copied_run: Copy, tmp_path: Path, capsys: Capture
) -> None:
    run = copied_run()
    shutil.rmtree(folder_of(run, "round_0/paths"))
    assert main(["judge", run.folder.uri, "-o", str(tmp_path / "judge.html")]) == 2
    assert "has no finished path to judge so far; run it first" in capsys.readouterr().err
    assert not (tmp_path / "judge.html").exists()


def test_missing_file_is_refused(finished_run: FinishedRun, capsys: Capture) -> None:
    assert main(["judge-import", finished_run.folder.uri, "nowhere.json"]) == 2
    assert "nowhere.json cannot be read" in capsys.readouterr().err
    assert main(["judge", finished_run.folder.uri, "--number", "0"]) == 2
    assert "--number 0" in capsys.readouterr().err


# --- vetoes ------------------------------------------------------------------------------------


def test_vetoed_paths_are_dropped_and_their_place_is_filled(
    copied_run: Copy, tmp_path: Path, model_folder: Path
) -> None:
    run = copied_run()
    table = imported(run, tmp_path, lambda n: "no" if n % 2 else "yes")
    rejected = {row["path_id"] for row in pq.read_table(table).to_pylist() if row["valid"] == "no"}
    verdicts = verdicts_of(run)
    assert {verdicts[path_id] for path_id in rejected} >= {"correct"}
    settings = ExampleSettings(vetoes=str(table))  # type: ignore[arg-type]

    def select(settings: ExampleSettings) -> dict[str, int]:
        questions = run.steps["questions"].folder
        facts = select_step_examples(
            run.steps["round_0/paths"].folder,
            Questions(questions, ("train",)),
            Questions(questions, ("dev", "test")),
            settings,
            Model("base", str(model_folder), run.config.storage.cache),
            {},
            None,
        )
        return dict(facts["dropped"])

    dropped, before = select(settings), select(ExampleSettings())
    assert dropped["vetoed"] == sum(verdicts[path_id] == "correct" for path_id in rejected)
    assert "vetoed" not in before
    of_another_text = replace(
        settings.vetoes,  # type: ignore[type-var]
        paths=frozenset((path_id, "0" * 16) for path_id in rejected),
    )
    unmeant = settings.model_copy(update={"vetoes": of_another_text})
    assert "vetoed" not in select(unmeant)


def test_vetoes_count_by_what_they_reject_and_not_by_their_file(
    copied_run: Copy, tmp_path: Path
) -> None:
    run = copied_run()
    table = imported(run, tmp_path, lambda n: "no" if n else "yes")
    moved = tmp_path / "moved.parquet"
    moved.write_bytes(table.read_bytes())
    one, other = (
        ExampleSettings(vetoes=str(file))  # type: ignore[arg-type]
        for file in (table, moved)
    )
    assert content_of(one) == content_of(other) != content_of(ExampleSettings())
    assert one.model_dump(mode="json")["vetoes"] == str(table)
    none = imported(run, tmp_path, lambda n: "yes")
    without = ExampleSettings(vetoes=str(none))  # type: ignore[arg-type]
    assert content_of(without) == content_of(ExampleSettings())


def test_other_file_of_vetoes_is_refused(finished_run: FinishedRun, tmp_path: Path) -> None:
    folder = Path(run_folder(finished_run, "round_0/examples"))
    examples = next(folder.glob("train-*.parquet"))
    for given, expected in (
        (str(tmp_path / "nowhere.parquet"), "nowhere.parquet is missing"),
        (str(examples), "is no table of judgements"),
        (str(folder / "manifest.json"), "is damaged"),
        (str(folder / "dropped"), r"dropped cannot be read \(.*\); correct the path"),
        (3, "vetoes are named as a file that `judge-import` wrote"),
        (f"{folder}/", "vetoes are named as a file that `judge-import` wrote"),
    ):
        with pytest.raises((InputError, ValueError), match=expected):
            ExampleSettings(vetoes=given)  # type: ignore[arg-type]


def run_folder(run: FinishedRun, name: str) -> str:
    return run.steps[name].folder.path
