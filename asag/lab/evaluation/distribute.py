"""Shards of the items on Ray, which places them, notices lost workers and runs their shards again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from asag.lab.evaluation.plan import EvaluationError, Item

Work = Callable[[Sequence[Item]], int]


def run(work: Work, shards: Sequence[Sequence[Item]], address: str, gpu: bool) -> Iterator[int]:
    """What `work` returns for each shard, in the order in which they finish; each is a task with one GPU or one CPU.

    A task whose worker or machine is lost runs again, as often as it takes; `work` skips what is stored already.

    Args:
        address: of a running Ray, or "local" to start one on this machine for as long as this takes.

    Raises:
        EvaluationError: naming Ray where it isn't installed, or the address where none answers.
        Exception: what `work` raised, with Ray's report of it as the cause.
    """
    ray = _ray()
    # Ray sends usage statistics unless told not to.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    local = {"include_dashboard": False} if address == "local" else {}
    try:
        # What each worker prints while it loads would bury the bar; it is in Ray's logs, and errors come back anyway.
        ray.init(address=address, logging_level="warning", log_to_driver=False, **local)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise EvaluationError(f"ray: {address!r}: {error}; allowed: local, or the address of a running Ray") from error
    # A process on a GPU ends with its shard: Ray may give its next task another GPU, and the process couldn't follow.
    needs: dict[str, Any] = {"num_gpus": 1, "max_calls": 1} if gpu else {"num_cpus": 1}
    try:
        task = ray.remote(max_retries=-1, **needs)(shard_task)
        shared = ray.put(work)
        running = [task.remote(shared, shard) for shard in shards]
        while running:
            done, running = ray.wait(running)
            yield ray.get(done[0])
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    finally:
        ray.shutdown()


def shard_task(work: Work, shard: Sequence[Item]) -> int:
    return work(shard)


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise EvaluationError("ray: isn't installed; allowed: pip install sd-webui-asag[evaluate]") from error
    return ray
