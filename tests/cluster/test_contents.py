"""The files of a finished step are listed, and compared before they are used."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import cluster.store.step
from cluster.errors import DamagedFileError, InputError, StorageError
from cluster.store.contents import damaged_files
from cluster.store.folder import MANIFEST, OPENED, Folder
from cluster.store.holder import hold
from cluster.store.ledger import (
    Ledger,
    PartWriter,
    compact,
    ledger_schema,
    load_file,
    open_ledger,
)
from cluster.store.step import (
    Step,
    check_run_folder,
    check_steps,
    claim_run_folder,
    content_of_step,
    is_intact,
)
from tests.small_disk import SmallDisk, small_disk

SCHEMA = ledger_schema([pa.field("text", pa.string())])
TABLE = pa.table(
    {"id": [f"example {n}" for n in range(200)], "tokens": [[n] * 9 for n in range(200)]}
)


def rows(first: int, text: str = "a thought") -> list[dict[str, Any]]:
    known = {"question_fingerprint": "f", "attempt": 0, "dataset": "d"}
    return [
        known | {"question_id": f"q{n}", "text": f"{text} {n}"} for n in range(first, first + 90)
    ]


def write_ledger(step: Folder, text: str = "a thought") -> None:
    for chunk in (0, 1):
        PartWriter(step.child(f"parts/1/{chunk:06d}"), SCHEMA).write(rows(100 * chunk, text))
        compact(step, SCHEMA)


def write_model(step: Folder) -> None:
    for name in ("config.json", "tokenizer.json", "weights.txt", "adapter/weights.txt"):
        step.write_bytes(name, b"{ 'of': 'a model, of which this is one file' }" * 20)
    step.write_bytes("model.safetensors", bytes(range(256)) * 9)
    step.write_bytes("checkpoints/step-000001/shard", b"changes")


def write_scores(step: Folder) -> None:
    step.write_table("scores.parquet", TABLE)
    step.write_bytes("scores.md", b"| task | 12.5 |\n" * 9)


def write_examples(step: Folder) -> None:
    step.write_table("train-00000.parquet", TABLE)
    step.write_table("train-00001.parquet", TABLE.slice(50))
    step.write_table("dropped/dropped-00000.parquet", TABLE)


def write_guidelines(step: Folder) -> None:
    write_ledger(step)
    step.write_table("asked/prompts.parquet", TABLE)
    step.write_bytes("guidelines.yaml", b"- id: proposed-00\n  text: Draw a picture.\n" * 9)


KINDS: dict[str, Callable[[Folder], None]] = {
    "questions": lambda step: step.write_table("questions.parquet", TABLE),
    "guidelines": write_guidelines,
    "paths": write_ledger,
    "examples": write_examples,
    "model": write_model,
    "predictions": write_ledger,
    "scores": write_scores,
}


def finish(root: Path, kind: str, seed: int = 0) -> Step:
    step = Step.below(Folder.open(str(root)), kind, {"kind": kind, "seed": seed})
    KINDS[kind](step.folder)
    step.commit()
    return step


def own_files(step: Step) -> list[Path]:
    root = Path(step.folder.path)
    names = [name for name in step.folder.walk() if name != MANIFEST]
    return [root / name for name in names if not name.startswith(("parts/", "checkpoints/"))]


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 4
    file.write_bytes(data)


def zero(file: Path) -> None:
    data = bytearray(file.read_bytes())
    middle, size = len(data) // 2, max(8, len(data) // 8)
    data[middle : middle + size] = bytes(size)
    file.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "deleted": Path.unlink,
    "emptied": lambda file: file.write_bytes(b""),
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-5]),
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"\n"),
    "flipped": flip,
    "zeroed": zero,
}


@pytest.mark.parametrize("kind", KINDS)
def test_finished_step_as_it_was_left_is_taken(tmp_path: Path, kind: str) -> None:
    step = finish(tmp_path, kind)
    manifest = step.manifest()
    assert manifest
    names = {str(file.relative_to(step.folder.path)) for file in own_files(step)}
    assert manifest["files"].keys() == names
    assert all(facts.get("rows", 1) > 0 for facts in manifest["files"].values())
    assert check_steps([step]) == []
    assert is_intact(step)
    for name in (".DS_Store", "parts/000001-000001-ab/left", "checkpoints/x", "wandb/log"):
        step.folder.write_bytes(name, b"of no account")
    assert check_steps([step]) == []


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_file_of_a_finished_step_is_named(tmp_path: Path, kind: str, damage: str) -> None:
    step = finish(tmp_path / "good", kind)
    for file in own_files(step):
        if file.suffix == ".safetensors" and damage in ("flipped", "zeroed"):
            continue  # of which the engine compares each tensor
        whole = file.read_bytes()
        DAMAGES[damage](file)
        with pytest.raises(DamagedFileError, match=re.escape(file.name)) as caught:
            check_steps([step])
        assert str(step.folder.path) in str(caught.value)
        assert not is_intact(step)
        file.write_bytes(whole)
    assert check_steps([step]) == []


@pytest.mark.parametrize("kind", KINDS)
def test_file_of_another_step_is_named_in_the_place_of_ours_and_next_to_it(
    tmp_path: Path, kind: str
) -> None:
    step = finish(tmp_path / "ours", kind)
    other = Step.below(Folder.open(str(tmp_path / "theirs")), kind, {"seed": 1})
    writers = {"paths": write_ledger, "predictions": write_ledger, "guidelines": write_ledger}
    if kind in writers:
        writers[kind](other.folder, "another text")
    else:
        other.folder.write_table("foreign.parquet", TABLE.slice(1))
    foreign = next(Path(other.folder.path).glob("*.parquet"))
    ours = own_files(step)[-1]
    whole = ours.read_bytes()
    shutil.copy(foreign, ours)
    with pytest.raises(DamagedFileError, match=re.escape(ours.name)):
        check_steps([step])
    ours.write_bytes(whole)
    beside = Path(step.folder.path) / foreign.name
    shutil.copy(foreign, beside)
    with pytest.raises(
        DamagedFileError, match=f"{re.escape(foreign.name)} does not belong to the step"
    ):
        check_steps([step])


def test_step_lists_what_it_made_and_not_what_was_put_there_before(tmp_path: Path) -> None:
    step = Step.below(Folder.open(str(tmp_path)), "questions", {})
    step.folder.write_bytes("foreign.parquet", b"PAR1, or not")
    step.folder.write_table("questions.parquet", TABLE)
    with pytest.raises(DamagedFileError, match=r"foreign\.parquet is damaged"):
        step.commit()
    step.commit(made=["questions.parquet"])
    with pytest.raises(DamagedFileError, match=r"foreign\.parquet does not belong to the step"):
        check_steps([step])


def test_content_of_an_unfinished_step_is_read_and_is_no_file_of_the_finished_one(
    tmp_path: Path,
) -> None:
    step = Step.below(Folder.open(str(tmp_path)), "paths", {"guidelines": ["a"]})
    assert content_of_step(step.folder) == {}
    step.keep_content()
    assert not step.is_done
    assert content_of_step(step.folder) == {"guidelines": ["a"]}
    step.commit()
    assert (step.folder.manifest() or {})["files"] == {}
    assert content_of_step(step.folder) == {"guidelines": ["a"]}
    assert is_intact(step)


def test_folder_of_another_step_under_our_name_is_refused(tmp_path: Path) -> None:
    step, other = (finish(tmp_path, "examples", seed) for seed in (0, 1))
    shutil.rmtree(step.folder.path)
    shutil.copytree(other.folder.path, step.folder.path)
    with pytest.raises(DamagedFileError, match="belongs to another step"):
        check_steps([step])


def test_no_flipped_bit_of_a_manifest_changes_what_is_read(tmp_path: Path) -> None:
    step = finish(tmp_path, "scores")
    before, file = step.manifest() or {}, Path(step.folder.path) / MANIFEST
    whole = file.read_bytes()
    for place in range(len(whole)):
        data = bytearray(whole)
        data[place] ^= 1 << place % 7
        file.write_bytes(data)
        read: Mapping[str, Any] = before
        with contextlib.suppress(DamagedFileError):
            read = step.folder.manifest() or before  # not JSON any more
        # A flip in the name of its hash makes another fact of that.
        assert {name: value for name, value in read.items() if name in before} == before


def test_step_of_an_earlier_version_is_taken_with_a_note(tmp_path: Path) -> None:
    step = finish(tmp_path, "paths")
    manifest = step.folder.manifest() or {}
    del manifest["files"]
    step.folder.write_json(MANIFEST, manifest)
    [note] = check_steps([step])
    assert step.folder.uri in note
    assert is_intact(step)


def test_large_step_is_read_as_tasks(
    tmp_path: Path, ray_cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster.store.step, "SMALL_BYTES", 0)
    steps = [finish(tmp_path, kind) for kind in ("examples", "scores")]
    assert check_steps(steps) == []
    flip(own_files(steps[1])[0])
    with pytest.raises(DamagedFileError, match=r"scores\.\w+ is damaged"):
        check_steps(steps)


def test_names_and_sizes_are_compared_without_reading_a_file(tmp_path: Path) -> None:
    step = finish(tmp_path, "examples")
    flip(own_files(step)[0])
    assert check_steps([step], contents=False) == []
    own_files(step)[0].unlink()
    with pytest.raises(DamagedFileError, match="is missing"):
        check_steps([step], contents=False)


# --- rows of a step that is not finished ---------------------------------------------------------


@pytest.mark.parametrize("damage", [*DAMAGES])
def test_damaged_part_is_read_as_missing_and_never_as_other_rows(
    tmp_path: Path, damage: str
) -> None:
    folder = Folder.open(str(tmp_path)).child("paths-0123456789ab")
    for chunk in (0, 1):
        PartWriter(folder.child(f"parts/1/{chunk:06d}"), SCHEMA).write(rows(100 * chunk))
    [first, _] = sorted(Path(folder.path).rglob("part-*"))
    DAMAGES[damage](first)
    ledger = Ledger.read(folder, whole=True)
    assert [row["question_id"] for row in ledger.rows()] == [r["question_id"] for r in rows(100)]
    compacted = compact(folder, SCHEMA, whole=True)
    assert compacted.index.num_rows == 90
    assert not first.exists()


def test_every_flipped_bit_of_a_part_is_found(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path)).child("paths-0123456789ab")
    PartWriter(folder, SCHEMA).write(rows(0)[:3])
    [part] = Path(folder.path).glob("part-*")
    whole = part.read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 300)):
        data = bytearray(whole)
        data[place] ^= 1 << place % 8
        part.write_bytes(data)
        assert Ledger.read(folder, whole=True).files == []


def test_part_of_another_step_is_none_of_ours(tmp_path: Path) -> None:
    ours, theirs = (Folder.open(str(tmp_path)).child(f"paths-0123456789a{n}") for n in "bc")
    PartWriter(theirs, SCHEMA).write(rows(0))
    shutil.copytree(theirs.path, ours.path)
    assert Ledger.read(theirs, whole=True).num_rows_read == 90
    assert Ledger.read(ours, whole=True).files == []


def test_pages_of_every_table_carry_checksums(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path))
    text = pa.table({"text": [f"a number, {n * 7919 % 10_007}" for n in range(5000)]})
    folder.write_table("a.parquet", text)
    column = pq.read_metadata(tmp_path / "a.parquet").row_group(0).column(0)
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    data[column.data_page_offset + column.total_compressed_size // 4] ^= 8
    (tmp_path / "a.parquet").write_bytes(data)
    with pytest.raises(OSError, match="CRC"):
        folder.open_parquet("a.parquet").read()
    with pytest.raises(DamagedFileError, match=r"a\.parquet is damaged"):
        folder.read_table()


# --- what a power cut may take -------------------------------------------------------------------


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was synced, in order, and the names of the files that were removed in between."""
    seen: list[str] = []
    sync, delete = os.fsync, Folder.delete_files

    def note_sync(descriptor: int) -> None:
        seen.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        sync(descriptor)

    def note_delete(folder: Folder, names: Iterable[str]) -> None:
        gone = list(names)
        seen.extend(f"deleted {folder.path}/{name}" for name in gone)
        delete(folder, gone)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Folder, "delete_files", note_delete)
    return seen


@pytest.mark.parametrize("kind", KINDS)
def test_all_that_a_manifest_lists_is_synced_with_its_folders_before_the_manifest(
    tmp_path: Path, synced: list[str], kind: str
) -> None:
    step = Step.below(Folder.open(str(tmp_path / "run")), kind, {})
    KINDS[kind](step.folder)
    del synced[:]
    step.commit()
    manifest = synced.index(f"{step.folder.path}/{MANIFEST}")
    for file in own_files(step):
        assert synced.index(str(file)) < manifest
        for folder in {file.parent, Path(step.folder.path), Path(step.folder.path).parent}:
            assert synced.index(str(file)) < synced.index(str(folder)) < manifest
    assert step.folder.path in synced[manifest:]


def test_compacted_rows_are_synced_before_their_parts_are_removed(
    tmp_path: Path, synced: list[str]
) -> None:
    folder = Folder.open(str(tmp_path)).child("paths-0123456789ab")
    for chunk in (0, 1):
        PartWriter(folder.child(f"parts/1/{chunk:06d}"), SCHEMA).write(rows(100 * chunk))
    compact(folder, SCHEMA)
    [compacted] = Path(folder.path).glob("rows-*")
    first_deleted = next(n for n, what in enumerate(synced) if what.startswith("deleted "))
    assert synced.index(str(compacted)) < synced.index(folder.path) < first_deleted
    assert sum(what.startswith("deleted ") for what in synced) == 2


# --- a disk that is full, read-only or gone ------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A file system of one megabyte."""
    with small_disk(tmp_path / "disk", "1m") as made:
        yield made


def fill(disk: Path) -> Path:
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as full:
        try:
            while full.write(bytes(4096)):
                pass
        except OSError:
            pass
    return ballast


def copy_model(run: Folder) -> None:
    source = Path(run.path).parent.parent / "model"
    source.mkdir(exist_ok=True)
    (source / "model.safetensors").write_bytes(bytes(10_000))
    run.child("model-0123456789ab").copy_from_local(source)


def take(run: Folder) -> None:
    with hold(run):
        pass


WRITES: dict[str, Callable[[Folder], object]] = {
    "claim": lambda run: claim_run_folder(run, "run"),
    "hold": take,
    "table": lambda run: run.child("examples").write_table("a.parquet", TABLE),
    "part": lambda run: PartWriter(run.child("paths/parts/1/0"), SCHEMA).write(rows(0)),
    "commit": lambda run: Step.below(run, "paths", {}).commit(),
    "model": copy_model,
}


@pytest.mark.parametrize("write", WRITES)
def test_full_disk_is_named_and_the_same_write_succeeds_once_there_is_room(
    disk: SmallDisk, write: str
) -> None:
    run = Folder.open(str(disk.path / "run"))
    ballast = fill(disk.path)
    with pytest.raises((StorageError, InputError), match="No space left on device") as caught:
        WRITES[write](run)
    assert str(disk.path) in str(caught.value)
    assert re.search(r"\d+ bytes", str(caught.value))
    written = [file for file in (disk.path / "run").rglob("*") if file.is_file()]
    assert all(file.stat().st_size for file in written if file.suffix == ".json")
    ballast.unlink()
    WRITES[write](run)
    if write == "claim":
        assert check_run_folder(run, "run")


@pytest.mark.parametrize("write", WRITES)
def test_disk_that_became_read_only_is_named(disk: SmallDisk, write: str) -> None:
    disk.mount_again("remount,bind,ro")
    with pytest.raises((StorageError, InputError), match="Read-only file system"):
        WRITES[write](Folder.open(str(disk.path / "run")))


@pytest.mark.parametrize("remove", [lambda f: f.delete(), lambda f: f.delete_files(["a.json"])])
def test_file_that_cannot_be_removed_is_named(
    disk: SmallDisk, remove: Callable[[Folder], None]
) -> None:
    folder = Folder.open(str(disk.path / "run"))
    folder.write_json("a.json", {})
    disk.mount_again("remount,bind,ro")
    named = f"{folder.uri}.* cannot be removed: .*Read-only file system"
    with pytest.raises(StorageError, match=named):
        remove(folder)


def test_run_folder_removed_under_a_command_is_said_for_a_file_that_is_missed(
    tmp_path: Path,
) -> None:
    """The next beat, which would tell, is seconds away."""
    run = Folder.open(str(tmp_path / "run"))

    def miss_a_file() -> None:
        with hold(run) as held:
            held.write_json("a.json", {})
            (tmp_path / "run").rename(tmp_path / "elsewhere")
            held.read_bytes("a.json")

    with pytest.raises(StorageError, match="was removed while"):
        miss_a_file()


def test_what_a_command_left_in_place_of_a_removed_run_is_no_other_thing(tmp_path: Path) -> None:
    run = Folder.open(str(tmp_path / "run"))
    for name in ("engine_dtype.json", "tensorboard/a", "round_0/paths-0123456789ab/opened-1.json"):
        run.write_bytes(name, b"{}")
    assert not check_run_folder(run, "run")
    for name in ("round_0/notes.txt", "round_0/paths-0123456789ab/manifest.json"):
        run.write_bytes(name, b"{}")  # of somebody else, or of a run that lost its file
        with pytest.raises(InputError, match="holds something else"):
            check_run_folder(run, "run")
        run.delete_files([name])


def test_run_folder_removed_under_a_command_is_said(tmp_path: Path) -> None:
    run = Folder.open(str(tmp_path / "run"))

    def lose_the_folder() -> None:
        with hold(run) as held:
            (tmp_path / "run").rename(tmp_path / "elsewhere")
            Step.below(held, "paths", {}).commit()

    with pytest.raises(StorageError, match="was removed while"):
        lose_the_folder()


def test_empty_run_file_of_a_full_disk_does_not_block_the_run(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_bytes(b"")
    folder = Folder.open(str(tmp_path))
    assert not check_run_folder(folder, "run")
    claim_run_folder(folder, "run")
    assert json.loads((tmp_path / "run.json").read_text())["run"] == "run"
    (tmp_path / "run.json").write_bytes(b"")
    (tmp_path / "thesis.tex").write_bytes(b"")
    with pytest.raises(InputError, match="holds something else"):
        check_run_folder(folder, "run")


@pytest.mark.parametrize(
    ("uri", "hint"),
    [
        ("s3:/bucket/runs", "write s3://bucket/runs"),
        ("s3:bucket/runs", "write s3://bucket/runs"),
        ("s3//bucket/runs", "write s3://bucket/runs"),
        ("gs:bucket", "write gs://bucket"),
        ("file:/data/runs", "write file:///data/runs"),
        ("file:data/runs", "write file:///data/runs"),
        ("", "has no value"),
        ("  ", "has no value"),
    ],
)
def test_uri_with_a_slip_makes_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, hint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=hint):
        Folder.open(uri)
    assert list(tmp_path.iterdir()) == []


def test_rows_that_a_superseded_holder_wrote_late_are_no_part_of_a_finished_step(
    tmp_path: Path,
) -> None:
    """It did not notice in time that another command had the run; its rows count nowhere."""
    run = Folder.open(str(tmp_path / "run"))
    with hold(run):
        pass
    with hold(run) as held:
        step = Step.below(held, "paths", {})
        write_ledger(step.folder)
        step.commit()
    step.folder.write_bytes("rows-000001-000009-0123456789abcdef.parquet", b"late")
    check_steps([step])
    assert Ledger.read(step.folder).index.num_rows == 180
    step.folder.write_bytes("rows-000002-000009-0123456789abcdef.parquet", b"foreign")
    with pytest.raises(DamagedFileError, match=r"rows-000002.* does not belong to the step"):
        check_steps([step])


def test_file_that_goes_between_listing_and_reading_is_damaged(tmp_path: Path) -> None:
    step = finish(tmp_path, "examples")
    listed = (step.folder.manifest() or {})["files"]
    assert damaged_files(step.folder, listed) == []
    gone = own_files(step)[0].relative_to(step.folder.path)
    (Path(step.folder.path) / gone).unlink()
    assert damaged_files(step.folder, listed) == [f"{gone} is damaged"]


def test_ledger_of_a_finished_step_names_what_is_missing_or_damaged(tmp_path: Path) -> None:
    step = finish(tmp_path, "paths")
    [file, *_] = own_files(step)
    data = file.read_bytes()
    flip(file)
    with pytest.raises(DamagedFileError, match=rf"{file.name} is damaged"):
        Ledger.read(step.folder, whole=True)
    file.unlink()
    with pytest.raises(DamagedFileError, match=rf"{file.name} is missing"):
        Ledger.read(step.folder)
    with pytest.raises(DamagedFileError, match=rf"{file.name} is missing"):
        load_file(step.folder, file.name)
    file.write_bytes(data)
    assert len(Ledger.read(step.folder, whole=True).index) == 180


def test_ledger_whose_list_of_files_that_count_is_torn_is_damaged(tmp_path: Path) -> None:
    with hold(Folder.open(str(tmp_path))) as held:
        step = held.child("paths-0123456789ab")
        ledger = open_ledger(step, SCHEMA)
        assert open_ledger(step, SCHEMA).files == ledger.files == []  # only once by each holder
        [opened] = [name for name in step.file_names() if name.startswith(OPENED)]
        (Path(step.path) / opened).write_bytes(b'{"files')
        with pytest.raises(DamagedFileError, match=rf"{opened} is damaged"):
            Ledger.read(step)


def test_manifest_that_does_not_say_what_its_step_was_made_from_is_refused(tmp_path: Path) -> None:
    step = Step.below(Folder.open(str(tmp_path)), "paths", {"seed": 1})
    step.commit(made=[])
    assert check_steps([step]) == []
    manifest = step.manifest() or {}
    step.folder.commit({name: of for name, of in manifest.items() if name != "content"})
    sentence = f"{step.folder.uri} has changed: {MANIFEST} belongs to another step"
    with pytest.raises(DamagedFileError, match=re.escape(sentence)):
        check_steps([step])
