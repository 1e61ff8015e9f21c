"""Work off the driver, on real Ray."""

from __future__ import annotations

import os
import time

import pyarrow as pa
import pytest
import ray

from cluster.errors import InputError
from cluster.remote import map_blocks, run_task, run_tasks


def _refuse(*_arguments: object) -> pa.Table:
    raise InputError("nothing can be done with this")


def _miss(*_arguments: object) -> pa.Table:
    raise KeyError("numbers")


def _process() -> int:
    return os.getpid()


def _times(block: pa.Table, factor: int) -> pa.Table:
    numbers = [factor * number for number in block.column("number").to_pylist()]
    return pa.table({"numbers": [numbers]})


def test_run_task_runs_elsewhere_and_raises_what_was_raised(ray_cluster: str) -> None:
    assert run_task(_process) != os.getpid()
    with pytest.raises(InputError, match="nothing can be done"):
        run_task(_refuse)


def _half(number: int) -> int:
    if number % 2:
        raise InputError(f"{number} is odd")
    return number // 2


def test_run_tasks_without_ray_runs_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    assert run_tasks(_half, [(8,), (2,)]) == [4, 1]
    with pytest.raises(InputError, match=r"^3 is odd$"):
        run_tasks(_half, [(3,)])


def _map_in_a_task(factor: int, num_blocks: int) -> list[pa.Table]:
    blocks = [pa.table({"number": [block, 10 + block]}) for block in range(num_blocks)]
    return map_blocks(_times, blocks, factor)


@pytest.mark.parametrize("num_blocks", [0, 1, 5])
def test_every_block_is_mapped_once_also_from_within_a_task(
    ray_cluster: str, num_blocks: int
) -> None:
    tables = run_task(_map_in_a_task, 3, num_blocks)
    numbers = [table.column("numbers").to_pylist() for table in tables]
    assert sorted(numbers) == [[[3 * block, 30 + 3 * block]] for block in range(num_blocks)]


def _wait(block: pa.Table) -> pa.Table:
    time.sleep(block.column("seconds")[0].as_py())
    return block


def test_block_may_take_longer_than_ray_data_would_wait(
    ray_cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ray.data.DataContext.get_current()
    monkeypatch.setattr(context, "execution_no_progress_timeout_s", 0.2)
    [table] = map_blocks(_wait, [pa.table({"seconds": [3]})])
    assert table.column("seconds").to_pylist() == [3]


def test_block_that_fails_ends_the_map_with_its_reason(ray_cluster: str) -> None:
    with pytest.raises(InputError, match=r"^nothing can be done with this$"):
        map_blocks(_refuse, [pa.table({"number": [1]})])
    with pytest.raises(ray.exceptions.RayTaskError, match="KeyError: 'numbers"):
        map_blocks(_miss, [pa.table({"number": [1]})])


def test_run_tasks_on_a_cluster_gives_results_in_order_and_raises_what_was_raised(
    ray_cluster: str,
) -> None:
    assert run_tasks(_half, [(8,), (2,), (6,)]) == [4, 1, 3]
    with pytest.raises(InputError, match=r"^3 is odd$"):
        run_tasks(_half, [(2,), (3,)])
