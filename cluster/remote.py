"""Work that grows with the data and is therefore kept off the driver.

A task gets its arguments (folders, settings) and returns a few numbers. A map over blocks gets and
returns Arrow tables, through the object store, which spills them to disk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import pyarrow as pa

from cluster.errors import InputError
from cluster.session import configure_ray_data

_NOTE_OF_RAY = "\nFailed to apply UDF transform"
"""How Ray Data's note begins that it appends to the text of an exception."""

P = ParamSpec("P")
R = TypeVar("R")


def run_task(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run one function on some node and wait for it. Raises what the function raises."""
    import ray

    # The task takes no CPU, because the pool may hold all but one. Its errors are not retried.
    remote: Any = ray.remote(num_cpus=0, max_retries=2, retry_exceptions=False)(function)
    try:
        result: R = ray.get(remote.remote(*args, **kwargs))
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    return result


def run_tasks(function: Callable[..., R], calls: Sequence[tuple[Any, ...]]) -> list[R]:
    """Run one function with each of several arguments in parallel; locally if Ray is not running.

    Returns the results in the order of the calls. Raises what the function raises.
    """
    import ray

    if not ray.is_initialized():
        return [function(*arguments) for arguments in calls]
    remote: Any = ray.remote(num_cpus=0, max_retries=2, retry_exceptions=False)(function)
    try:
        results: list[R] = ray.get([remote.remote(*arguments) for arguments in calls])
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    return results


def map_blocks(
    function: Callable[..., pa.Table], blocks: Sequence[pa.Table], *args: Any
) -> list[pa.Table]:
    """Compute `function(block, *args)` for every block with Ray Data on all CPUs of the cluster.

    The results come in any order, and each must have at least one row. Raises an `InputError` that
    the function raised, and `ray.exceptions.RayTaskError` with anything else that it raised.
    """
    import ray

    if not blocks:  # Ray Data would make a dataset without columns
        return []
    configure_ray_data()
    ray.data.DataContext.get_current().raise_original_map_exception = True
    mapped = ray.data.from_arrow(list(blocks)).map_batches(
        function, fn_args=args, batch_size=None, batch_format="pyarrow", num_cpus=1
    )
    try:
        tables: list[pa.Table] = ray.get(mapped.to_arrow_refs())
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, InputError):
            sentence = str(error.cause).partition(_NOTE_OF_RAY)[0]
            raise type(error.cause)(sentence) from None
        raise
    return tables
