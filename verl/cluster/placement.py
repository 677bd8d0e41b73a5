"""Where processes go: what each place on a GPU holds, as Ray's placement group is asked for it. Pure arithmetic.

``split``: each learner rank and each rollout worker has GPUs of its own. ``shared``: each GPU holds one learner rank
and one rollout worker, which take turns; the engine sleeps while the learner works. On CPU no place has a GPU, and the
same turns are taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

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

    def by_machine(self, machines: Sequence[str]) -> Places:
        """The same places with the learner's ranks ordered by machine, of which ``machines`` has each bundle's.

        Ray promises no order, and ranks that are neighbours share shards or a sequence: far slower over a network.
        """
        order = list(dict.fromkeys(machines[index] for index in self.learner))
        return replace(self, learner=sorted(self.learner, key=lambda index: order.index(machines[index])))


def places(cluster: ClusterConfig, ranks: int, workers: int, gpus_per_worker: int = 1) -> Places:
    """One CPU a process, and ``cluster.gpus_per_process`` GPUs a learner rank or rank of an engine.

    Without ``ranks`` (an evaluation) an engine that would share its GPU has it whole. Raises UserError where ``shared``
    cannot pair ranks with workers.
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
    each = 2 * gpus if cluster.placement == "shared" else gpus * gpus_per_worker
    bundles = [_bundle(1, gpus) for _ in range(ranks)] + [_bundle(1, each) for _ in range(workers)]
    return Places(bundles, range(ranks), range(ranks, ranks + workers))


def _bundle(cpus: int, gpus: float) -> dict[str, float]:
    return {"CPU": float(cpus), "GPU": gpus} if gpus else {"CPU": float(cpus)}
