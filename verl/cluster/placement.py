"""Where processes go: what each place on a GPU holds, as Ray's placement group is asked for it. Pure arithmetic.

``split``: each learner rank and each rollout worker has GPUs of its own. ``shared``: each GPU holds one learner rank
and one rollout worker, which take turns; the engine sleeps while the learner works. On CPU no place has a GPU, and the
same turns are taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from verl.cluster.config import ClusterConfig
from verl.errors import UserError


@dataclass(frozen=True, slots=True)
class Places:
    """The bundles of a placement group, and which of them each process takes."""

    bundles: Sequence[dict[str, float]]
    learner: Sequence[int]
    """Index of the bundle of each learner rank."""
    rollout: Sequence[int]
    """Index of the bundle of each rollout worker."""


def places(cluster: ClusterConfig, ranks: int, workers: int, gpus_per_worker: int = 1) -> Places:
    """One CPU a process, and ``cluster.gpus_per_process`` GPUs a learner rank or rank of an engine.

    Raises UserError where ``shared`` cannot pair ranks with workers.
    """
    gpus = cluster.gpus_per_process
    if cluster.placement == "shared" and ranks and gpus:
        if ranks != workers or gpus_per_worker > 1:
            raise UserError(
                f"cluster.placement=shared pairs each learner rank with a rollout worker on one whole GPU, not {ranks} "
                f"ranks with {workers} workers of {gpus_per_worker} GPUs: write cluster.learner_ranks={workers} and "
                "rollout.engine.tensor_parallel_size=1, or placement=split"
            )
        return Places([_bundle(2, 2 * gpus) for _ in range(ranks)], range(ranks), range(ranks))
    bundles = [_bundle(1, gpus) for _ in range(ranks)] + [_bundle(1, gpus * gpus_per_worker) for _ in range(workers)]
    return Places(bundles, range(ranks), range(ranks, ranks + workers))


def _bundle(cpus: int, gpus: float) -> dict[str, float]:
    return {"CPU": float(cpus), "GPU": gpus} if gpus else {"CPU": float(cpus)}
