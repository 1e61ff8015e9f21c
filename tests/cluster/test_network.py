"""A store on a network: how many requests it gets, and what happens while it is away."""

from __future__ import annotations

import itertools
import os
import pickle
import uuid
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.fs
import pytest

from cluster.errors import InputError, StorageError, StoreAwayError, StoreRefusedError
from cluster.store import network
from cluster.store.folder import Folder
from cluster.store.network import wait_out
from tests.cluster.s3_proxy import CountingProxy, Mode

BIG = os.urandom(20_000_000)


@pytest.fixture
def folder(s3_proxy: CountingProxy) -> Folder:
    return Folder.open(s3_proxy.uri(f"bucket/{uuid.uuid4().hex}"), outage_s=30)


def requests_of(proxy: CountingProxy, call: Callable[[], object]) -> int:
    before = len(proxy.requests)
    call()
    return len(proxy.requests) - before


# --- requests ----------------------------------------------------------------------------------


def test_network_a_file_of_20_mb_takes_at_most_five_requests(
    s3_proxy: CountingProxy, folder: Folder
) -> None:
    assert requests_of(s3_proxy, lambda: folder.write_bytes("big", BIG)) <= 5
    assert requests_of(s3_proxy, lambda: folder.read_bytes("big")) <= 2
    assert requests_of(s3_proxy, lambda: list(folder.blocks("big", 16 * 2**20))) <= 5
    assert folder.read_bytes("big") == BIG


def test_network_small_files_take_one_request_to_write_and_two_to_read(
    s3_proxy: CountingProxy, folder: Folder
) -> None:
    assert requests_of(s3_proxy, lambda: folder.child("a/b/c").write_bytes("x", b"1")) == 1
    assert requests_of(s3_proxy, lambda: folder.child("a/b/c").read_bytes("x")) == 2
    assert requests_of(s3_proxy, lambda: folder.create("once", b"1")) == 1
    assert requests_of(s3_proxy, folder.walk) == 1


def test_network_some_columns_of_a_table_take_few_requests(
    s3_proxy: CountingProxy, folder: Folder
) -> None:
    columns = {f"column_{n}": list(range(2000)) for n in range(30)}
    folder.write_table("t.parquet", pa.table(columns))
    some = [f"column_{n}" for n in range(12)]
    assert requests_of(s3_proxy, lambda: folder.open_parquet("t.parquet").read(some)) <= 4


# --- outages -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["away", "busy"])
def test_network_what_is_asked_during_an_outage_is_done_after_it(
    s3_proxy: CountingProxy, folder: Folder, mode: Mode
) -> None:
    folder.write_bytes("there", b"1")

    def ends(method: str, path: str) -> None:
        s3_proxy.mode = "on" if len(s3_proxy.refused) % 4 == 3 else mode

    calls: list[Callable[[], object]] = [
        lambda: folder.write_bytes("new", b"2"),
        lambda: folder.read_bytes("there") == b"1",
        lambda: folder.create("created", b"3"),
        lambda: folder.walk() == ["created", "new", "there"],
    ]
    for number, call in enumerate(calls):
        s3_proxy.refused, s3_proxy.before = [], ends
        assert call() is not False, number
        s3_proxy.before, s3_proxy.mode = (lambda method, path: None), "on"
        assert len(s3_proxy.refused) == 3
    assert folder.read_bytes("new") == b"2"


def test_network_a_read_goes_on_where_the_store_went_away(
    s3_proxy: CountingProxy, folder: Folder
) -> None:
    folder.write_bytes("big", BIG[:300_000])
    blocks = folder.blocks("big", 100_000)
    first = next(blocks).to_pybytes()
    s3_proxy.refuse_next = 4
    assert first + b"".join(block.to_pybytes() for block in blocks) == BIG[:300_000]
    assert len(s3_proxy.refused) == 4


def test_network_what_was_created_without_an_answer_is_created(
    s3_proxy: CountingProxy, folder: Folder
) -> None:
    def answers_again(method: str, path: str) -> None:
        s3_proxy.mode = "on" if s3_proxy.requests else "lost"

    s3_proxy.before = answers_again
    assert folder.create("mine", b"1")
    s3_proxy.before, s3_proxy.mode = (lambda method, path: None), "on"
    assert not folder.create("mine", b"2")


def test_network_an_outage_that_does_not_end_is_one_sentence(
    s3_proxy: CountingProxy, folder: Folder
) -> None:
    s3_proxy.mode = "away"
    with pytest.raises(
        StorageError, match=r"x \(1 bytes\) cannot be written: .*repeat the command"
    ):
        folder.waiting(0).write_bytes("x", b"1")


def test_network_a_refusal_is_not_tried_again(s3_proxy: CountingProxy, folder: Folder) -> None:
    s3_proxy.mode = "forbidden"
    for call in (
        lambda: folder.write_bytes("x", b"1"),
        lambda: folder.read_bytes("x"),
        lambda: folder.create("x", b"1"),
        folder.walk,
    ):
        s3_proxy.refused = []
        with pytest.raises(InputError, match=r"the storage s3://bucket refuses this request"):
            call()
        assert len(s3_proxy.refused) == 1


def test_network_a_bucket_that_is_not_there_is_refused(s3_proxy: CountingProxy) -> None:
    folder = Folder.open(s3_proxy.uri("nobody/run"))
    for call in (lambda: folder.write_bytes("x", b"1"), lambda: folder.create("x", b"1")):
        with pytest.raises(StoreRefusedError, match=r"s3://nobody refuses .*the bucket exists"):
            call()


def test_network_folder_is_the_same_after_a_journey(folder: Folder) -> None:
    copy = pickle.loads(pickle.dumps(folder.waiting(7)))
    assert copy == folder
    assert copy.outage_s == 7
    assert copy.uri == folder.uri
    assert folder.uri.startswith("s3://bucket/")


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(network, "time", clock)
    return clock


def failing_until(clock: Clock, end: float, error: OSError) -> Callable[[], str]:
    def call() -> str:
        if clock.now < end:
            raise error
        return "done"

    return call


def test_network_two_minutes_are_waited_for_and_said_once(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    error = OSError("AWS Error NETWORK_CONNECTION during PutObject")
    assert wait_out(failing_until(clock, 120, error), "s3://a", outage_s=300) == "done"
    assert clock.now < 127
    said = capsys.readouterr().err.splitlines()
    assert [line.split(" (")[0] for line in said] == [
        said[0].split(" (")[0],
        f"the storage s3://a answers again after {clock.now:.0f} s",
    ]
    assert "the storage s3://a has not answered for 2" in said[0]


def test_network_a_short_outage_is_not_worth_a_line(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    wait_out(failing_until(clock, 10, OSError("SLOW_DOWN")), "s3://b", outage_s=300)
    assert capsys.readouterr().err == ""


def test_network_after_the_longest_outage_the_error_is_raised(clock: Clock) -> None:
    with pytest.raises(OSError, match="SLOW_DOWN"):
        wait_out(failing_until(clock, 1e9, OSError("SLOW_DOWN")), "s3://c", outage_s=120)
    assert 110 < clock.now <= 120


@pytest.mark.parametrize(
    ("error", "is_refusal"),
    [
        (OSError("AWS Error ACCESS_DENIED during HeadObject operation"), True),
        (OSError("AWS Error INVALID_ACCESS_KEY_ID during PutObject operation"), True),
        (OSError("AWS Error SIGNATURE_DOES_NOT_MATCH during PutObject operation"), True),
        (OSError("AWS Error NO_SUCH_BUCKET during PutObject operation"), True),
        (OSError("AWS Error UNKNOWN (HTTP status 400) during HeadObject operation"), True),
        (PermissionError("no"), True),
        (OSError("AWS Error UNKNOWN (HTTP status 503) during HeadObject operation"), False),
        (OSError("AWS Error UNKNOWN (HTTP status 429) during HeadObject operation"), False),
        (OSError("AWS Error NETWORK_CONNECTION: curlCode: 7, Couldn't connect to server"), False),
        (OSError("AWS Error NETWORK_CONNECTION: curlCode: 6, Couldn't resolve host name"), False),
        (OSError("AWS Error INTERNAL_FAILURE during PutObject operation"), False),
        (ConnectionResetError("reset"), False),
        (TimeoutError("timed out"), False),
    ],
)
def test_network_refusals_are_told_from_outages(
    clock: Clock, error: OSError, is_refusal: bool
) -> None:
    calls = itertools.count()

    def call() -> None:
        next(calls)
        raise error

    with pytest.raises(StoreRefusedError if is_refusal else StoreAwayError):
        wait_out(call, "s3://d", outage_s=60)
    assert (next(calls) == 1) == is_refusal


def test_network_ray_train_keeps_a_checkpoint_through_an_outage(
    s3_proxy: CountingProxy, folder: Folder, tmp_path: Path
) -> None:
    from ray.train import Checkpoint
    from ray.train.v2._internal.execution.storage import StorageContext

    local = tmp_path / "local"
    (local / "step").mkdir(parents=True)
    for name in ("shard_0.pt", "shard_1.pt", "step/state.json"):
        (local / name).write_bytes(os.urandom(200_000))
    storage = StorageContext(folder.path, "checkpoints", folder.filesystem)
    s3_proxy.requests.clear()
    s3_proxy.refuse_next = 7
    checkpoint = Checkpoint.from_directory(str(local))
    kept = storage.persist_current_checkpoint(checkpoint, "step-000002")
    assert len(s3_proxy.refused) == 7
    assert s3_proxy.count("PUT") == 3
    assert len(s3_proxy.requests) <= 5
    s3_proxy.refuse_next = 4
    restored = pickle.loads(pickle.dumps(kept))
    with restored.as_directory() as found:
        for name in ("shard_0.pt", "shard_1.pt", "step/state.json"):
            assert (Path(found) / name).read_bytes() == (local / name).read_bytes()


# --- a store that keeps folders, such as HDFS --------------------------------------------------


def test_network_store_that_keeps_folders_does_what_a_disk_does(tmp_path: Path) -> None:
    store = network.waiting(pyarrow.fs.LocalFileSystem(), outage_s=5)
    root = str(tmp_path / "a")
    store.create_dir(f"{root}/b/c", recursive=True)
    for name in ("one", "two"):
        with store.open_output_stream(f"{root}/b/c/{name}") as stream:
            stream.write(name.encode())
    store.copy_file(f"{root}/b/c/one", f"{root}/b/copied")
    store.move(f"{root}/b/c/two", f"{root}/b/moved")
    store.delete_file(f"{root}/b/c/one")
    there = {
        path.name: path.read_bytes() for path in (tmp_path / "a/b").iterdir() if path.is_file()
    }
    assert there == {"copied": b"one", "moved": b"two"}
    with store.open_input_stream(f"{root}/b/moved") as stream:
        assert (stream.read(1), stream.read()) == (b"t", b"wo")
    store.delete_dir(f"{root}/b/c")
    assert not (tmp_path / "a/b/c").exists()
    store.delete_dir_contents(root)
    assert list((tmp_path / "a").iterdir()) == []
    store.delete_dir_contents(f"{root}/nowhere", missing_dir_ok=True)


def test_network_what_is_not_there_is_said_at_once(clock: Clock, tmp_path: Path) -> None:
    store = network.waiting(pyarrow.fs.LocalFileSystem(), outage_s=300)
    with pytest.raises(FileNotFoundError):
        store.open_input_file(str(tmp_path / "missing"))
    with pytest.raises(FileNotFoundError):
        store.delete_dir_contents(str(tmp_path / "missing"))
    assert clock.now == 0


def test_network_answer_that_nothing_is_there_ends_an_outage(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    def call() -> str:
        raise OSError("SLOW_DOWN") if clock.now < 60 else FileNotFoundError("no such object")

    with pytest.raises(FileNotFoundError):
        wait_out(call, "s3://e", outage_s=300)
    assert "the storage s3://e answers again" in capsys.readouterr().err


def test_network_store_refuses_what_no_run_asks_of_it(
    tmp_path: Path,
) -> None:
    """What pyarrow may ask of any file system, and no store of a run is asked."""
    store = network.NetworkStore(pyarrow.fs.LocalFileSystem(), outage_s=5)
    same = network.NetworkStore(pyarrow.fs.LocalFileSystem(), outage_s=7)
    assert store == same
    assert hash(store) == hash(same)
    for refuse in (
        store.delete_root_dir_contents,
        lambda: store.open_append_stream(str(tmp_path / "a"), None),
    ):
        with pytest.raises(NotImplementedError):
            refuse()


def test_network_upload_into_a_bucket_that_is_not_there_is_refused(
    s3_proxy: CountingProxy,
) -> None:
    folder = Folder.open(s3_proxy.uri("nobody/run"))
    stream = folder.filesystem.open_output_stream("nobody/run/x")
    stream.write(b"1")
    with pytest.raises(OSError, match=r"s3://nobody refuses .*the bucket exists"):
        stream.close()


def test_network_only_s3_has_options_to_be_tuned() -> None:
    google = pyarrow.fs.GcsFileSystem(anonymous=True)
    assert network._tuned(google) is google
