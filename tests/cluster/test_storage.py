from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.fs
import pytest

from cluster.errors import InputError
from cluster.models.cache import ModelCache, copied
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
