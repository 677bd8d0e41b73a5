"""Ray for one run: a cluster of its own (or one that runs already), actors that are ready within a bound, and an end.

A local cluster declares exactly the logical CPUs that the run's actors ask for, so that a small machine can host them
all; real threads are set per process. What does not fit is an error that names the shortage, not an endless wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import os
import re
import shlex
import sys
from collections.abc import Awaitable, Mapping, Sequence
from pathlib import Path
from typing import Any

from verl.cluster.config import ClusterConfig
from verl.errors import EngineDiedError, InfrastructureError, UserError

# Ray's own services that a run has no use for; each costs start-up time and outlives a killed driver.
_QUIET = {
    "RAY_DEDUP_LOGS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_enable_metrics_collection": "0",
    # A record of every call, kept by Ray for its dashboard: its server grew by 0.5 MB a minute.
    "RAY_task_events_report_interval_ms": "0",
    "RAY_prestart_worker_first_driver": "0",
    # Ray would start workers at niceness 15: on a shared machine the run would then wait for everything else.
    "RAY_worker_niceness": "0",
}

_CALLS_AT_ONCE = 1_000_000
"""More calls than are ever open at an asynchronous actor."""


def path_faults(config: ClusterConfig, python: str = sys.executable) -> list[str]:
    """Why a local Ray could not start workers of the Python at this path."""
    if config.address == "local" and (odd := sorted({"'", "\\"} & set(python))):
        return [f"Python is at {python}, and Ray starts nothing from a path with {' or '.join(odd)}: rename the folder"]
    return []


class RayRuntime:
    """Start with ``with``; actors made through it die with it."""

    def __init__(self, config: ClusterConfig, num_actors: int, folder: Path) -> None:
        """``num_actors`` is how many logical CPUs a local cluster declares: each actor asks for one.

        ``folder`` takes a local cluster's session files and sockets; its path must be short.
        """
        self._config = config
        self._num_actors = num_actors
        self._folder = folder
        self._actors: list[Any] = []
        self._group: Any = None
        # Ray lets a shell start workers and quotes nothing; in a cluster each node names its own Python.
        self._python = {"py_executable": shlex.quote(sys.executable)} if config.address == "local" else {}

    def __enter__(self) -> RayRuntime:
        for key, value in _QUIET.items():
            os.environ.setdefault(key, value)
        import ray

        # Ray would print a notice of a dead process at any time, after our last line too; the log of the run has it.
        ray._private.worker._worker_logs_enabled = False
        local: dict[str, Any] = {}
        if self._config.address == "local":
            local = {
                "num_cpus": self._num_actors,
                "include_dashboard": False,
                "object_store_memory": self._config.object_store_mib << 20,
                "_temp_dir": str(self._folder),
            }
        try:
            ray.init(
                address=self._config.address,
                log_to_driver=False,
                configure_logging=True,
                logging_level=logging.ERROR,
                namespace=f"sleuth-{os.getpid()}",
                **local,
            )
        except Exception as error:  # Ray raises a bare Exception where its own processes are not up within 30 s
            raise InfrastructureError(f"Ray did not start (cluster.address={self._config.address}): {error}") from error
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        for actor in self._actors:
            ray.kill(actor)
        if self._group is not None:
            ray.util.remove_placement_group(self._group)
        ray.shutdown()

    def reserve(self, bundles: Sequence[Mapping[str, float]], timeout_s: float) -> list[str]:
        """Take all places of the run at once, as near to one another as there is room; actors name theirs by index.

        Returns the address of each place's machine.

        Raises InfrastructureError that names the shortage if the cluster has no room within ``timeout_s``.
        """
        import ray
        from ray.util.placement_group import placement_group, placement_group_table

        self._group = placement_group([dict(bundle) for bundle in bundles], strategy="PACK")
        if not self._group.wait(timeout_seconds=timeout_s):
            asked = {kind: sum(bundle.get(kind, 0.0) for bundle in bundles) for kind in ("CPU", "GPU")}
            told = " and ".join(f"{count:g} {kind}s" for kind, count in asked.items() if count)
            raise InfrastructureError(f"no room for {told} after {timeout_s:.0f} s: {_shortage()}")
        address_of = {node["NodeID"]: str(node["NodeManagerAddress"]) for node in ray.nodes()}
        node_of: dict[int, str] = placement_group_table(self._group)["bundles_to_node_id"]
        return [address_of[node_of[index]] for index in range(len(bundles))]

    def kill(self, actor: Any) -> None:
        """End an actor's process now; no harm if it has ended already."""
        import ray

        self._actors.remove(actor)
        ray.kill(actor)

    def actor(
        self, cls: type, threads: int, *args: Any, place: int | None = None, gpus: float = 0.0, **kwargs: Any
    ) -> Any:
        """Start an actor in its own process, with its threads set before anything is imported there.

        ``place`` is the index of a reserved bundle (none: wherever there is a CPU), ``gpus`` what it takes of it. An
        actor whose methods are asynchronous answers every call at once, however many are open.
        """
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        from verl.cluster.processes import thread_environment

        strategy: Any = "DEFAULT"
        if place is not None:
            strategy = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=place)
        # Ray would let 1,000 calls in: at a high staleness groups fill that, and new weights wait outside.
        is_async = any(inspect.iscoroutinefunction(method) for _, method in inspect.getmembers(cls))
        options = {"max_concurrency": _CALLS_AT_ONCE} if is_async else {}
        handle = (
            ray.remote(cls)
            .options(
                num_cpus=1,
                num_gpus=gpus,
                scheduling_strategy=strategy,
                runtime_env={"env_vars": thread_environment(threads), **self._python},
                **options,
            )
            .remote(*args, **kwargs)
        )
        self._actors.append(handle)
        return handle


async def ready(what: str, answers: Sequence[Awaitable[Any]], timeout_s: float, logs: Sequence[Path]) -> list[Any]:
    """Wait until all actors answered, and return their answers.

    Raises InfrastructureError that names a shortage, or the actor's own error.
    """
    try:
        async with asyncio.timeout(timeout_s):
            return await asyncio.gather(*answers)
    except TimeoutError:
        raise InfrastructureError(f"{what} not ready after {timeout_s:.0f} s: {_shortage()}") from None
    except Exception as error:
        raise first_cause(error, what, logs) from error


def this_machine() -> str:
    """This process's address in the cluster."""
    import ray

    return str(ray.util.get_node_ip_address())


def this_node() -> str:
    """Ray's id of the node that this process is on."""
    import ray

    return str(ray.get_runtime_context().get_node_id())


def see_own_gpus() -> None:
    """Let this actor's process see its own GPUs alone, also where Ray is told to leave that to others.

    Otherwise all actors of a machine would compute on its first GPU. To be called before torch is imported.
    """
    import ray

    own = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
    if own and os.environ.get("RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, own))


def on_node(cls: type, node: str, *args: Any) -> Any:
    """Start an actor on one node, beside whatever runs there."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    place = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(cls).options(num_cpus=0, scheduling_strategy=place).remote(*args)


def has_died(error: Exception) -> bool:
    """Whether a call failed because the actor, its node or its engine is gone: it can be made again, elsewhere."""
    from ray.exceptions import NodeDiedError, ObjectLostError, RayActorError, RayTaskError, WorkerCrashedError

    if isinstance(error, RayTaskError):
        return isinstance(error.cause, EngineDiedError)
    return isinstance(error, RayActorError | NodeDiedError | ObjectLostError | WorkerCrashedError)


def first_cause(error: Exception, what: str, logs: Sequence[Path]) -> Exception:
    """An error that crossed a process border, as the one it was: a UserError or InfrastructureError of ours, or any."""
    from ray.exceptions import RayActorError, RayError, RayTaskError

    where = f" (log: {', '.join(str(log) for log in logs)})" if logs else ""
    if logs and isinstance(error, RayError):
        with contextlib.suppress(OSError), open(logs[0], "a") as log:  # a full disk must not hide the cause
            log.write(f"{error}\n")  # the traceback of the other process, which it did not print itself
    if isinstance(error, RayTaskError):
        cause = error.cause
        if type(cause).__module__ == "verl.errors":
            return type(cause)(f"{cause}{where}")
        return InfrastructureError(f"{what}: {type(cause).__name__}: {cause}{where}")
    if isinstance(error, RayActorError):
        return _death(str(error), what, where)
    return error


def _death(text: str, what: str, where: str) -> Exception:
    """The error of an actor that died: of its constructor if that raised, which Ray gives as text only."""
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines() if line.strip()]
    if "creation task" not in lines[0]:
        return InfrastructureError(f"{what}: its process died: killed, out of memory, or a crash in native code{where}")
    for kind in (UserError, InfrastructureError):
        marker = f"{kind.__module__}.{kind.__name__}: "
        if lines[-1].startswith(marker):
            return kind(f"{lines[-1].removeprefix(marker)}{where}")
    return InfrastructureError(f"{what}: {lines[-1]}{where}")


def _shortage() -> str:
    import ray

    total, free = ray.cluster_resources(), ray.available_resources()
    kinds = [kind for kind in ("CPU", "GPU") if total.get(kind)]
    state = ", ".join(f"{free.get(kind, 0):g} of {total[kind]:g} {kind}s free" for kind in kinds)
    return f"the cluster has {state}; lower cluster.learner_ranks, rollout.workers or cluster.gpus_per_process"
