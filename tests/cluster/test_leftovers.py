"""`clean` removes exactly the files that a run's steps created and that nothing needs."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.fs
import pytest

import regenesis
from cluster.errors import InputError
from cluster.events import kept_log, read_events
from cluster.store import unfinished
from cluster.store.cleanup import ask_to_delete, find_leftovers, format_leftovers, remove_leftovers
from cluster.store.folder import Folder
from cluster.store.holder import hold, this_process
from cluster.store.ledger import PartWriter, compact, ledger_schema
from cluster.store.step import STEPS_FILE, Step, claim_run_folder, write_steps

SCHEMA = ledger_schema([pa.field("text", pa.string())])


def finished(parent: Folder, name: str, seed: int = 0) -> Step:
    step = Step.below(parent, name, {"seed": seed})
    step.folder.write_bytes("file.md", bytes(1000))
    step.commit()
    return step


@pytest.fixture
def run(tmp_path: Path) -> Folder:
    """A run whose second config uses other paths than its first."""
    folder = Folder.open(str(tmp_path / "run"))
    claim_run_folder(folder, "run")
    steps = [finished(folder, "questions"), finished(folder.child("base"), "predictions")]
    steps += [finished(folder.child("round_0"), name) for name in ("paths", "model-gsm8k")]
    finished(folder.child("round_0"), "paths", seed=1)
    names = [step.folder.path.removeprefix(f"{folder.path}/") for step in steps]
    write_steps(folder, names)
    return folder


def found(run: Folder, *, superseded: bool = True) -> list[str]:
    leftovers = find_leftovers(run, superseded=superseded)
    return [left.folder.path.removeprefix(f"{run.path}/") for left in leftovers]


def superseded_paths() -> str:
    return Step.below(Folder.open("/run/round_0"), "paths", {"seed": 1}).folder.path[5:]


def test_superseded_step_goes_and_its_bytes_are_said(run: Folder) -> None:
    assert found(run) == [superseded_paths()]
    assert found(run, superseded=False) == []
    leftovers = find_leftovers(run, superseded=True)
    assert f"{leftovers[0].num_bytes} bytes in 1 folders" in format_leftovers(leftovers)
    assert leftovers[0].num_bytes > 1000
    before = run.walk()
    remove_leftovers(leftovers)
    assert [n for n in before if n not in run.walk()] == [
        f"{superseded_paths()}/{name}" for name in ("file.md", "manifest.json")
    ]


@pytest.mark.parametrize("data", [None, b"", b"[", b"[]", b"{}", b'"all"', b"[1]", b'["paths-x"]'])
def test_without_a_sound_list_of_the_steps_in_use_nothing_goes(
    run: Folder, data: bytes | None
) -> None:
    run.delete_files([STEPS_FILE])
    if data is not None:
        run.write_bytes(STEPS_FILE, data)
    with pytest.raises(InputError, match="nothing was deleted"):
        find_leftovers(run, superseded=True)
    assert found(run, superseded=False) == []


def test_no_flipped_bit_of_the_list_makes_a_step_in_use_superseded(run: Folder) -> None:
    whole = run.read_bytes(STEPS_FILE)
    for place in range(len(whole)):
        data = bytearray(whole)
        data[place] ^= 1 << place % 7
        run.write_bytes(STEPS_FILE, bytes(data))
        gone: list[str] = []
        with contextlib.suppress(InputError):
            gone = found(run)
        assert gone in ([], [superseded_paths()])


@pytest.mark.parametrize(
    "name",
    [
        "my-notes",
        "round_0/my-notes",
        "paths-final",
        "round_0/paths-0123456789ab",
        "round_0/backup/paths-0123456789ab",
        "thesis/chapter-0123456789ab",
        "round_x/paths-0123456789ab",
        "scores-0123456789AB",
    ],
)
def test_folder_of_a_user_stays(run: Folder, name: str) -> None:
    run.child(name).write_bytes("chapter.tex", b"mine")
    assert found(run) == [superseded_paths()]


def test_step_with_a_file_of_a_user_stays(run: Folder) -> None:
    run.child(superseded_paths()).write_bytes("my-notes/chapter.tex", b"mine")
    assert found(run) == []


def test_folder_that_is_a_link_stays(run: Folder, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    model = next(name for name in run.child("round_0").folder_names() if "model-gsm8k" in name)
    for place in (f"round_0/{model}/checkpoints", "round_0/paths-0123456789ab"):
        (Path(run.path) / place).symlink_to(tmp_path / "mine")
    assert found(run) == [superseded_paths()]


def test_copied_step_under_another_name_stays(run: Folder) -> None:
    manifest = run.child(superseded_paths()).read_bytes("manifest.json")
    run.child("round_0/paths-0123456789ab").write_bytes("manifest.json", manifest)
    run.child("round_0/scores-0123456789ab").write_bytes("manifest.json", b"{}")
    assert found(run) == [superseded_paths()]


def test_unfinished_step_goes_only_when_nothing_was_written_lately(run: Folder) -> None:
    step = run.child(superseded_paths())
    step.delete_files(["manifest.json"])
    part = "parts/000001-000001-ab12/000000/part-000000-0123456789abcdef.parquet"
    step.write_bytes(part, b"rows")
    with hold(run) as held:
        assert found(held) == []
    for name in step.walk():
        os.utime(f"{step.path}/{name}", (1e9, 1e9))
    with hold(run) as held:
        assert found(held) == [superseded_paths()]


def test_checkpoints_go_only_from_a_finished_training(run: Folder) -> None:
    for parent in ("round_0/my-model", superseded_paths()):
        run.child(parent).write_bytes("checkpoints/shard", b"mine")
    model = next(name for name in run.child("round_0").folder_names() if "model-gsm8k" in name)
    run.child(f"round_0/{model}").write_bytes("checkpoints/shard", bytes(10))
    assert found(run, superseded=False) == [f"round_0/{model}/checkpoints"]


@pytest.mark.parametrize(("answer", "expected"), [("y\n", True), ("n\n", False), ("\n", False)])
def test_clean_asks_on_a_terminal(
    run: Folder, monkeypatch: pytest.MonkeyPatch, answer: str, expected: bool
) -> None:
    terminal = io.StringIO(answer)
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)
    assert ask_to_delete(find_leftovers(run, superseded=True)) is expected


def test_clean_without_a_terminal_has_to_be_told(
    run: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    with pytest.raises(InputError, match="--yes"):
        ask_to_delete(find_leftovers(run, superseded=True))


def test_clean_logs_what_it_removed_and_keeps_the_logs_of_all_commands(run: Folder) -> None:
    with kept_log("run", run):
        pass
    before = {name: run.read_bytes(name) for name in run.walk("logs")}
    assert regenesis.main(["clean", run.path, "--superseded", "--yes"]) == 0
    removed = [event for event in read_events(run) if event["event"] == "removed"]
    assert [event["folder"] for event in removed] == [f"{run.path}/{superseded_paths()}"]
    assert {name: run.read_bytes(name) for name in before} == before
    commands = [event["command"] for event in read_events(run) if "pid" in event]
    assert commands == ["run", "run", "clean", "clean"]


def write_unfinished(run: Folder, process: int) -> Path:
    """A file as a process leaves it that is killed in the middle of a write."""
    file = Path(run.path) / "round_0" / unfinished.new_name()
    own = f"-{os.getpid()}-{unfinished.started(os.getpid())}-"
    assert own in file.name
    name = file.name.replace(own, f"-{process}-{unfinished.started(process) or 17}-")
    return write_old(file.with_name(name), age_s=0)


def write_old(file: Path, age_s: float) -> Path:
    file.write_bytes(b"half a file")
    then = time.time() - age_s
    os.utime(file, (then, then))
    return file


def test_unfinished_files_go_once_their_writers_have_ended(
    run: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    reused = write_unfinished(run, os.getpid())
    reused = reused.rename(str(reused).replace(f"-{unfinished.started(os.getpid())}-", "-1-"))
    goes = [
        write_unfinished(run, ended.pid),
        reused,
        write_old(Path(run.path) / ".writing-0123456789abcdef", age_s=700),
        write_old(Path(run.path) / ".writing-01234567-4711-17-0123abcd", age_s=700),
    ]
    stays = [
        write_unfinished(run, os.getpid()),
        write_old(write_unfinished(run, os.getpid()), age_s=70_000),
        write_old(Path(run.path) / ".writing-0123456789abcdee", age_s=0),
        write_old(Path(run.path) / ".writing-01234567-4711-17-0123abce", age_s=0),
        write_old(Path(run.path) / ".writing-my-thesis", age_s=70_000),
    ]
    assert regenesis.main(["clean", run.path, "--yes"]) == 0
    assert "4 unfinished files of processes that have ended" in capsys.readouterr().out
    assert not any(file.exists() for file in goes)
    assert all(file.exists() for file in stays)


def test_unfinished_file_on_a_machine_without_proc_goes_by_its_age_alone(
    run: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unfinished, "machine", lambda: "")
    file = write_unfinished(run, os.getpid())
    assert found(run, superseded=False) == []
    write_old(file, age_s=700)
    [leftover] = find_leftovers(run)
    assert leftover.files == (f"round_0/{file.name}",)


def test_unfinished_file_that_is_finished_while_files_are_looked_for_is_no_leftover(
    tmp_path: Path,
) -> None:
    for name in (".writing-0123456789abcdef", ".writing-0123456789abcdee"):
        write_old(tmp_path / name, age_s=700)
    files = unfinished.left_behind(tmp_path, before=time.time() - 600)
    first = next(files)
    [other] = [file for file in tmp_path.iterdir() if file != first]
    other.rename(tmp_path / "table.parquet")
    assert list(files) == []


def test_run_on_a_store_has_no_unfinished_files_on_a_disk(
    run: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = Path(run.path).parent
    monkeypatch.chdir(parent)  # where a folder of this machine has the path that is meant there
    store = pyarrow.fs.SubTreeFileSystem(str(parent), pyarrow.fs.LocalFileSystem())
    write_old(Path(run.path) / ".writing-0123456789abcdef", age_s=700)
    assert found(Folder(store, "run")) == [superseded_paths()]


def test_superseded_step_of_an_earlier_version_goes_though_it_lists_no_files(run: Folder) -> None:
    step = run.child(superseded_paths())
    manifest = step.manifest() or {}
    step.commit({name: of for name, of in manifest.items() if name not in ("files", "xxh3")})
    step.write_bytes("notes.txt", b"of whom is not known")
    assert found(run) == [superseded_paths()]


def test_unfinished_file_in_a_step_that_goes_is_no_file_of_a_user(run: Folder) -> None:
    step = Path(run.path) / superseded_paths()
    write_old(step / ".writing-0123456789abcdef", age_s=700)
    assert found(run) == [superseded_paths()]


def test_unfinished_files_of_a_killed_holder_go_when_another_follows(run: Folder) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with hold(run):
        pass
    file = write_unfinished(run, ended.pid)
    with hold(run):
        assert file.exists(), "a holder that ended normally is not searched for"
    run.child("holders").write_json("000003.json", this_process() | {"pid": ended.pid})
    with hold(run):
        assert not file.exists()


def test_clean_that_only_lists_writes_nothing(run: Folder) -> None:
    before = run.walk()
    assert regenesis.main(["clean", run.path, "--superseded", "--dry-run"]) == 0
    assert run.walk() == before


def test_superseded_folder_that_a_link_stands_for_stays(run: Folder, tmp_path: Path) -> None:
    """What the link shows is elsewhere, and may be another run's."""
    (tmp_path / "run" / superseded_paths()).rename(tmp_path / "elsewhere")
    (tmp_path / "run" / superseded_paths()).symlink_to(tmp_path / "elsewhere")
    assert found(run) == []


def test_parts_go_from_a_finished_step_once_its_rows_are_compacted(run: Folder) -> None:
    step = Step.below(run.child("round_0"), "paths", {"seed": 2})
    row = {"question_id": "q", "question_fingerprint": "f", "attempt": 0, "dataset": "d"}
    PartWriter(step.folder.child("parts/1/000000"), SCHEMA).write([row | {"text": "a thought"}])
    parts = f"round_0/{step.folder.name}/parts"
    # An earlier version listed no files in the manifest, so that every part counts.
    step.folder.commit({"step": "paths", "extent": {}, "content": step.content})
    assert found(run, superseded=False) == []

    step.folder.delete_files(["manifest.json"])
    compact(step.folder, SCHEMA)
    step.folder.write_bytes("parts/1/plan.parquet", b"the questions of this execution")
    step.commit()
    assert found(run, superseded=False) == [parts]

    later = step.folder.written_at(["manifest.json"]) + 10
    os.utime(f"{step.folder.path}/parts/1/plan.parquet", (later, later))
    assert found(run, superseded=False) == []  # a command works on it again
