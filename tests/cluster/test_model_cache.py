"""One copy of a model on a node, its remains removed, and a limit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cluster.errors import StorageError
from cluster.models.cache import ModelCache, copied, release
from cluster.models.model import tuned_model
from cluster.store.folder import Folder
from tests.cluster.s3_proxy import CountingProxy
from tests.conftest import REPOSITORY

FILES = {"config.json": 20, "tokenizer.json": 30_000, "model.safetensors": 2_000_000}
WEIGHTS = "model.safetensors"


@pytest.fixture
def remote(s3_proxy: CountingProxy) -> Folder:
    """A finished model step on the store."""
    folder = Folder.open(s3_proxy.uri(f"bucket/{uuid.uuid4().hex}/model-0123456789ab"))
    for name, size in FILES.items():
        folder.write_bytes(name, os.urandom(size))
    folder.child("checkpoints").write_bytes("shard.safetensors", b"not the model's")
    folder.commit({"step": "model"})
    s3_proxy.requests.clear()
    return folder


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def test_cache_four_engines_of_a_node_download_a_model_once(
    remote: Folder, s3_proxy: CountingProxy, tmp_path: Path
) -> None:
    model = tuned_model(remote, str(tmp_path))
    together = threading.Barrier(4)

    def engine(_: int) -> str:
        together.wait()
        return model.fetch()

    with ThreadPoolExecutor(4) as engines:
        folders = set(engines.map(engine, range(4)))
    (folder,) = map(Path, folders)
    assert names(folder) == {*FILES, "manifest.json"}
    assert s3_proxy.count("GET", WEIGHTS) == 1
    assert s3_proxy.count("HEAD", WEIGHTS) == 1
    assert s3_proxy.count("GET", "tokenizer") == 1
    assert (folder / WEIGHTS).read_bytes() == remote.read_bytes(WEIGHTS)


def test_cache_only_the_part_that_is_needed_is_copied(
    remote: Folder, s3_proxy: CountingProxy, tmp_path: Path
) -> None:
    model = tuned_model(remote, str(tmp_path))
    assert names(Path(model.fetch("config"))) == {"config.json"}
    assert len(s3_proxy.requests) <= 4
    assert names(Path(model.fetch("small"))) == {"config.json", "tokenizer.json", "manifest.json"}
    assert not s3_proxy.count("GET", WEIGHTS)
    whole = model.fetch()
    assert model.fetch("config") == model.fetch("small") == whole


def test_cache_a_model_that_was_made_again_is_copied_again(remote: Folder, tmp_path: Path) -> None:
    before = copied(remote, ModelCache(tmp_path))
    remote.write_bytes(WEIGHTS, b"trained once more")
    remote.commit({"step": "model", "finished_at": "later"})
    after = copied(remote, ModelCache(tmp_path))
    assert after != before
    assert (after / WEIGHTS).read_bytes() == b"trained once more"


KILLED = """
import sys, time
from pathlib import Path
from cluster.models.cache import ModelCache

def make(work):
    (work / "config.json").write_text("{}")
    print("copying", flush=True)
    time.sleep(60)

ModelCache(Path(sys.argv[1])).get("a/model", make, 1)
"""


def test_cache_what_a_killed_copy_left_is_removed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert names(tmp_path / "a") == {".making-model", "model.lock"}
        # While it is at work another model does not take its copy away.
        made(ModelCache(tmp_path), "b/other")
        assert ".making-model" in names(tmp_path / "a")
        process.send_signal(signal.SIGKILL)
    made(ModelCache(tmp_path), "b/third")
    assert ".making-model" not in names(tmp_path / "a")
    assert not (tmp_path / "a" / "model").exists()


def made(cache: ModelCache, name: str, num_bytes: int = 1000) -> Path:
    """A copy of so many bytes that no process uses any more."""
    target = cache.get(name, lambda work: fill(work, num_bytes), num_bytes)
    release(target)
    return target


def fill(work: Path, num_bytes: int) -> None:
    (work / "config.json").write_bytes(b"x" * num_bytes)


def used_at(target: Path, seconds: float) -> None:
    os.utime(target.with_name(f"{target.name}.use"), (seconds, seconds))


def test_cache_the_least_recently_used_models_go_first(tmp_path: Path) -> None:
    cache = ModelCache(tmp_path, limit=3000)
    first, second, third = (made(cache, f"{n}/model") for n in range(3))
    for seconds, target in ((300, first), (100, second), (200, third)):
        used_at(target, seconds)
    made(cache, "3/model")
    assert [first.exists(), second.exists(), third.exists()] == [True, False, True]
    made(cache, "4/model", 2000)
    assert [first.exists(), third.exists()] == [False, False]


def test_cache_a_model_in_use_stays_whatever_the_limit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = ModelCache(tmp_path, limit=2000)
    engine = cache.get("0/model", lambda work: fill(work, 1000), 1000)
    used_at(engine, 1)
    idle = made(cache, "1/model")
    made(cache, "2/model")
    assert engine.exists()
    assert not idle.exists()
    assert capsys.readouterr().err == ""
    made(cache, "3/model", 3000)
    assert engine.exists()
    assert "more than storage.cache_limit_gib" in capsys.readouterr().err
    release(engine)


def test_cache_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    def full(work: Path) -> None:
        fill(work, 10)
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match=r"7 bytes\), cannot be written: No space .*cache"):
        ModelCache(tmp_path).get("model", full, 7)
    assert names(tmp_path) == {"model.lock"}


def test_cache_an_outage_while_copying_is_waited_for(
    remote: Folder, s3_proxy: CountingProxy, tmp_path: Path
) -> None:
    def refuse_once(method: str, path: str) -> None:
        if WEIGHTS in path and not s3_proxy.refused:
            s3_proxy.refuse_next = 4

    s3_proxy.before = refuse_once
    folder = copied(remote, ModelCache(tmp_path))
    assert s3_proxy.refused
    assert (folder / WEIGHTS).read_bytes() == remote.read_bytes(WEIGHTS)


def test_cache_an_error_that_is_not_of_the_disk_stays_what_it_is(tmp_path: Path) -> None:
    def away(work: Path) -> None:
        raise ConnectionResetError(104, "Connection reset by peer")

    with pytest.raises(ConnectionResetError):
        ModelCache(tmp_path).get("model", away, 7)
    assert names(tmp_path) == {"model.lock"}


def test_cache_what_a_killed_copy_left_is_replaced_by_the_next_copy_of_that_model(
    tmp_path: Path,
) -> None:
    left = tmp_path / ".making-model"
    left.mkdir()
    (left / "half").write_bytes(b"x")
    assert names(made(ModelCache(tmp_path), "model")) == {"config.json"}
    assert not left.exists()


def test_cache_copies_of_an_earlier_version_go_before_those_that_were_used(tmp_path: Path) -> None:
    cache = ModelCache(tmp_path, limit=2000)
    used, earlier = made(cache, "0/model"), made(cache, "1/model")
    used_at(used, 1)
    earlier.with_name("model.use").unlink()
    made(cache, "2/model")
    assert [used.exists(), earlier.exists()] == [True, False]


def test_cache_folder_on_a_store_without_a_model_is_not_found(
    s3_proxy: CountingProxy, tmp_path: Path
) -> None:
    empty = Folder.open(s3_proxy.uri(f"bucket/{uuid.uuid4().hex}/model-0123456789ab"))
    with pytest.raises(FileNotFoundError, match="model-0123456789ab holds no model"):
        copied(empty, ModelCache(tmp_path))
    assert not [*tmp_path.rglob("config.json")]
