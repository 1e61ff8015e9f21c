from __future__ import annotations

import errno
import sys
from contextlib import nullcontext
from pathlib import Path

import pyarrow as pa
import pyarrow.fs
import pytest

from cluster.errors import DamagedFileError, InputError, StorageError
from cluster.models.cache import ModelCache, copied
from cluster.session import check_storage_root
from cluster.store.conditional import _s3_options, _store, create_object
from cluster.store.folder import MANIFEST, Folder
from cluster.store.step import Step, check_run_folder, claim_run_folder


def test_folder_without_manifest_is_not_finished(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path / "step"))
    folder.write_table("a.parquet", pa.table({"x": [1]}))
    assert folder.manifest() is None
    folder.commit({"rows": 1})
    assert folder.manifest() == {"rows": 1}
    assert folder.read_table().to_pylist() == [{"x": 1}]


def test_folder_torn_manifest_counts_as_not_written(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path))
    folder.commit({"rows": 1})
    whole = (tmp_path / MANIFEST).read_bytes()
    (tmp_path / MANIFEST).write_bytes(whole[: len(whole) // 2])
    assert folder.manifest() is None


def test_folder_works_on_an_object_store_like_file_system(tmp_path: Path) -> None:
    # A file system that is not the local one and knows neither rename nor append of ours.
    store = pyarrow.fs.SubTreeFileSystem(str(tmp_path), pyarrow.fs.LocalFileSystem())
    folder = Folder(store, "bucket/run")
    folder.child("model").write_bytes("config.json", b"{}")
    folder.child("model").commit({})
    cache = ModelCache(tmp_path / "cache")
    local = copied(folder.child("model"), cache)
    assert not folder.is_local
    assert sorted(path.name for path in local.iterdir()) == ["config.json", MANIFEST]
    assert copied(folder.child("model"), cache) == local


@pytest.mark.parametrize("is_local", [True, False])
def test_folder_walk_names_the_files_at_any_depth(tmp_path: Path, is_local: bool) -> None:
    store = pyarrow.fs.SubTreeFileSystem(str(tmp_path), pyarrow.fs.LocalFileSystem())
    folder = Folder.open(str(tmp_path)) if is_local else Folder(store, "bucket/run")
    names = ["a/b/2", "a/1", "ab/3", "4"]
    for name in names:
        folder.write_bytes(name, b"")
    assert folder.walk() == sorted(names)
    assert folder.walk("a") == ["a/1", "a/b/2"]
    assert folder.child("a").walk() == ["1", "b/2"]
    assert folder.walk("nowhere") == []


@pytest.mark.parametrize("is_local", [True, False])
def test_folder_what_is_removed_is_gone_and_removing_it_again_is_no_error(
    tmp_path: Path, is_local: bool
) -> None:
    store = pyarrow.fs.SubTreeFileSystem(str(tmp_path), pyarrow.fs.LocalFileSystem())
    folder = Folder.open(str(tmp_path)) if is_local else Folder(store, "bucket/run")
    for name in ("a/b/2", "a/1", "ab/3"):
        folder.write_bytes(name, b"")
    for _ in range(2):
        folder.delete_files(["a/1", "nowhere"])
        assert folder.walk() == ["a/b/2", "ab/3"]
    for _ in range(2):
        folder.child("a").delete()
        assert folder.walk() == ["ab/3"]


def test_folder_unknown_scheme_is_refused() -> None:
    with pytest.raises(InputError, match=r"storage\.root 'nowhere://x'"):
        Folder.open("nowhere://x")


def test_run_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path / "runs" / "mine"))
    claim_run_folder(folder, "mine")
    assert check_run_folder(folder, "mine")
    with pytest.raises(InputError, match="holds something else"):
        check_run_folder(folder, "yours")
    foreign = Folder.open(str(tmp_path / "thesis"))
    foreign.write_bytes("chapter_1.tex", b"")
    with pytest.raises(InputError, match="holds something else"):
        claim_run_folder(foreign, "thesis")
    assert foreign.file_names() == ["chapter_1.tex"]


def test_step_grown_extent_opens_it_again_in_the_same_folder(tmp_path: Path) -> None:
    parent = Folder.open(str(tmp_path))
    step = Step.below(parent, "paths", {"temperature": 0.8}, extent="10 questions")
    step.commit()
    grown = Step.below(parent, "paths", {"temperature": 0.8}, extent="20 questions")
    changed = Step.below(parent, "paths", {"temperature": 0.9}, extent="10 questions")
    assert step.is_done
    assert grown.folder == step.folder
    assert not grown.is_done
    assert changed.folder != step.folder


def test_folder_table_that_is_not_there_is_said_with_its_place(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path))
    with pytest.raises(DamagedFileError, match=r"/a\.parquet is missing$"):
        folder.read_parquet("a.parquet")
    with pytest.raises(DamagedFileError, match="contains no Parquet file"):
        folder.read_table()


def test_run_folder_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file, where the root of the runs should be")
    with pytest.raises(InputError, match=r"the run folder .*/runs/mine cannot be read: "):
        check_run_folder(Folder.open(str(tmp_path / "runs" / "mine")), "mine")


@pytest.mark.parametrize(
    ("root", "is_refused"),
    [("runs", True), ("./runs", True), ("/mnt/runs", False), ("~/runs", False), ("s3://b", False)],
)
def test_relative_root_is_refused_only_in_a_submitted_job(
    root: str, is_refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    check_storage_root(root)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(InputError, match="is relative") if is_refused else nullcontext():
        check_storage_root(root)


@pytest.mark.parametrize(
    ("number", "lasts"), [(errno.ENOSPC, True), (errno.EROFS, True), (errno.EIO, False)]
)
def test_error_of_a_disk_lasts_where_the_next_attempt_would_fail_too(
    number: int, lasts: bool
) -> None:
    error = StorageError("the file cannot be written")
    error.__cause__ = OSError(number, "why")
    assert error.lasts == lasts
    assert not StorageError("the store was away").lasts


# --- the options of object stores ----------------------------------------------------------------


def test_conditional_writes_ask_for_s3_as_pyarrow_does() -> None:
    for_all = pyarrow.fs.S3FileSystem(anonymous=True, region="eu-north-1")
    assert _s3_options(for_all) == {"region": "eu-north-1", "skip_signature": True}
    keys = {"access_key": "a", "secret_key": "b", "session_token": "c"}
    own = pyarrow.fs.S3FileSystem(**keys, region="r", endpoint_override="host:9000", scheme="http")
    assert _s3_options(own) == {
        "region": "r",
        "endpoint": "http://host:9000",
        "client_options": {"allow_http": True},
        "virtual_hosted_style_request": False,
        "access_key_id": "a",
        "secret_access_key": "b",
        "session_token": "c",
    }


def test_conditional_writes_to_google_go_to_its_bucket() -> None:
    store = _store(pyarrow.fs.GcsFileSystem(anonymous=True), "bucket")
    assert "bucket" in repr(store)
    assert type(store).__name__ == "GCSStore"


def test_object_store_without_the_package_for_it_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(InputError, match=r"a run on s3 needs .* pip install obstore"):
        create_object(pyarrow.fs.S3FileSystem(anonymous=True, region="r"), "bucket/a", b"1")


def test_other_file_systems_are_asked_before_a_file_is_created(tmp_path: Path) -> None:
    store = pyarrow.fs.SubTreeFileSystem(str(tmp_path), pyarrow.fs.LocalFileSystem())
    assert create_object(store, "run/a", b"first")
    assert not create_object(store, "run/a", b"second")
    assert (tmp_path / "run/a").read_bytes() == b"first"
