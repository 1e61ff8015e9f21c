"""A command that reads a finished run with a damaged file names it, and prints no other numbers."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.errors import DamagedFileError, InputError
from pipelines.stored_run import StoredRun
from regenesis import main
from tests.finished_run import FinishedRun, folder_of

Copy = Callable[[], FinishedRun]
Capture = pytest.CaptureFixture[str]


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 4
    file.write_bytes(data)


def zero(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


CHANGES: dict[str, Callable[[Path], object]] = {
    "deleted": Path.unlink,
    "emptied": lambda file: file.write_bytes(b""),
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-5]),
    "foreign": lambda file: shutil.copy(file, file.with_name("train-00009.parquet")),
}
CONTENTS = {"flipped": flip, "zeroed": zero}
"""What no listing shows."""

TABLES = ("questions", "round_0/examples", "round_0/examples/dropped", "round_0/scores")
LEDGERS = ("round_0/paths", "base/predictions")


def damage(run: FinishedRun, place: str, change: Callable[[Path], object]) -> str:
    """Change one file; returns its name."""
    step = next(name for name in run.steps if place.startswith(name))
    folder = folder_of(run, step) / place.removeprefix(step).strip("/")
    [*_, file] = sorted(folder.glob("*.parquet"))
    change(file)
    return file.name if file.exists() and change is not CHANGES["foreign"] else ".parquet"


def path_id(run: FinishedRun) -> str:
    return str(run.rows[0]["paths"][0]["path_id"])


def refusal(arguments: list[str], capsys: Capture) -> str:
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert not said.out
    assert said.err.startswith("regenesis: ")
    return said.err


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("place", TABLES + LEDGERS)
def test_step_that_a_listing_shows_to_be_damaged_is_named_by_every_reader(
    copied_run: Copy, tmp_path: Path, capsys: Capture, place: str, change: str
) -> None:
    run = copied_run()
    name = damage(run, place, CHANGES[change])
    folder = run.folder.uri
    report = ["report", folder, "-o", str(tmp_path / "report.html")]
    for arguments in (["analyse", folder], ["show", folder, path_id(run)], report):
        assert name in refusal(arguments, capsys)
    with pytest.raises(DamagedFileError, match=name):
        StoredRun.read(folder).table("round_0/paths")
    assert main(["show", folder]) == 0
    assert "damaged" in capsys.readouterr().out


@pytest.mark.parametrize("change", CONTENTS)
def test_path_is_not_shown_with_what_a_damaged_table_holds(
    copied_run: Copy, capsys: Capture, change: str
) -> None:
    run = copied_run()
    damage(run, "round_0/examples/dropped", CONTENTS[change])
    assert "is damaged" in refusal(["show", run.folder.uri, path_id(run)], capsys)


@pytest.mark.parametrize("change", CONTENTS)
@pytest.mark.parametrize("name", ["model/tokenizer_config.json", "model/tokenizer.json"])
def test_damaged_file_is_not_exported(
    copied_run: Copy, tmp_path: Path, capsys: Capture, name: str, change: str
) -> None:
    run = copied_run()
    CONTENTS[change](folder_of(run, "round_0/model") / Path(name).name)
    said = refusal(["export", run.folder.uri, "--to", str(tmp_path / "out")], capsys)
    assert f"{Path(name).name} is damaged" in said
    assert not (tmp_path / "out").exists()


def test_damaged_scores_are_not_left_out_of_a_card_in_silence(
    copied_run: Copy, tmp_path: Path, capsys: Capture
) -> None:
    run = copied_run()
    (folder_of(run, "round_0/scores") / "scores.parquet").unlink()
    said = refusal(["export", run.folder.uri, "--to", str(tmp_path / "out")], capsys)
    assert "scores.parquet is missing" in said


@pytest.mark.parametrize(
    ("command", "other"),
    [("analyse", "base/predictions"), ("show", "base/predictions"), ("export", "round_0/model")],
)
def test_manifest_of_another_step_is_no_manifest(
    copied_run: Copy, tmp_path: Path, capsys: Capture, command: str, other: str
) -> None:
    run = copied_run()
    manifest = folder_of(run, "round_0/examples") / "manifest.json"
    shutil.copy(folder_of(run, other) / "manifest.json", manifest)
    more = {"show": [path_id(run)], "export": ["--to", str(tmp_path / "out")]}.get(command, [])
    said = refusal([command, run.folder.uri, *more], capsys)
    assert f"{manifest} belongs to another step" in said
    assert main(["show", run.folder.uri]) == 0
    assert "belongs to another step" in capsys.readouterr().out


def test_questions_that_are_not_finished_are_not_counted_as_none(
    copied_run: Copy, capsys: Capture
) -> None:
    run = copied_run()
    (folder_of(run, "questions") / "manifest.json").write_bytes(b"")
    assert "the questions cannot be counted" in refusal(["analyse", run.folder.uri], capsys)


def test_model_has_no_table(finished_run: FinishedRun) -> None:
    with pytest.raises(InputError, match=r"round_0/model: the step .* contains no table"):
        StoredRun.read(finished_run.folder).table("round_0/model")


def test_tables_of_a_run_say_which_steps_they_lack(copied_run: Copy, capsys: Capture) -> None:
    run = copied_run()
    (folder_of(run, "round_0/examples") / "manifest.json").unlink()
    assert main(["analyse", run.folder.uri]) == 0
    assert "not finished so far" in capsys.readouterr().out
