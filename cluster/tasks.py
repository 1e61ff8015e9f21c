"""Work that grows with the data, kept off the driver: plain functions run as Ray tasks.

What crosses: the arguments (folders, settings) and a result of a few numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def run_task(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run one function on some node and wait for it. Raises what the function raised."""
    result: R = _get([_remote(function).remote(*args, **kwargs)])[0]
    return result


def map_tasks(
    function: Callable[..., R], calls: Iterable[tuple[Any, ...]], shared: tuple[Any, ...] = ()
) -> list[R]:
    """Run a function once for each tuple of arguments, as many at once as there are CPUs.

    The `shared` arguments come last in every call; they are stored once, not once for each. Raises
    what the function raised.
    """
    import ray

    remote = _remote(function).options(num_cpus=1)
    stored = [ray.put(argument) for argument in shared]
    return _get([remote.remote(*call, *stored) for call in calls])


def num_cpus() -> int:
    """The logical CPUs of the whole cluster."""
    import ray

    return int(ray.cluster_resources().get("CPU", 1))


def _get(references: list[Any]) -> list[Any]:
    """The results of tasks. Raises what the first one that failed raised, unwrapped."""
    import ray

    try:
        return list(ray.get(references))
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None


def _remote(function: Callable[..., Any]) -> Any:
    import ray

    # No CPU of its own: the pool may hold all but one. Not retried for errors of its own.
    return ray.remote(num_cpus=0, max_retries=2, retry_exceptions=False)(function)
