"""Where processes run. No torch, no Ray: a wrong value is reported at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from verl.errors import UserError, above, at_least


@dataclass(frozen=True)
class ClusterConfig:
    """The Ray cluster and what the run's processes ask of it."""

    address: str = "local"
    """``local`` starts a Ray of the run's own on this machine; ``auto`` or HOST:PORT joins a running cluster."""
    learner_ranks: int = 1
    """FSDP2 ranks, one process each: the number of GPUs that learn, or 1 on a laptop."""
    placement: Literal["split", "shared"] = "split"
    """``split``: learner and rollout on GPUs of their own. ``shared``: a learner rank and a rollout worker on each GPU,
    in turns: engines sleep, their GPU memory given back, while the learner works. On CPU they only pause."""
    gpus_per_process: float = 0.0
    """GPUs that each learner rank and each rank of an engine asks for: 0 runs on CPU, 1 goes with ``split``, 0.5 with
    ``shared``."""
    gpu_memory_gib: float = 80.0
    """Memory of one GPU, in GiB: what the plan checks sizes against. 80 is an A100 or H100."""
    learner_threads: int = 2
    """CPU threads of each learner rank: the cores of a laptop, since learner and rollout take turns."""
    object_store_mib: int = 256
    """Shared memory of a local Ray, in MiB: several times the trajectories of one step."""
    start_timeout_s: float = 120.0
    """Seconds until every learner rank must be ready; then the error names what the cluster lacks."""

    stall_warning_s: float = 300.0
    """Seconds in which nothing moves at the learner or for an episode before a warning says who waits for whom."""
    stall_error_s: float = 3600.0
    """The same, before the run ends with that as its error: more than the slowest update or search may take."""
    max_worker_restarts: int = 3
    """How often a rollout worker whose process or engine died is started again; past that the others go on alone, or
    the run ends. 0 never restarts."""

    def __post_init__(self) -> None:
        at_least(self, 1, "learner_ranks", "learner_threads")
        at_least(self, 0, "max_worker_restarts", "gpus_per_process")
        at_least(self, 80, "object_store_mib")  # Ray needs as much
        above(self, 0, "gpu_memory_gib", "start_timeout_s", "stall_warning_s", "stall_error_s")
        at_least(self, self.stall_warning_s, "stall_error_s")
        # Less would put two ranks on one GPU, which NCCL refuses; more would leave GPUs idle.
        if self.placement == "shared" and self.gpus_per_process not in (0, 0.5):
            raise UserError(
                f"gpus_per_process is {self.gpus_per_process} with placement=shared: two processes share a GPU, write "
                "0.5, or placement=split"
            )
        if self.placement == "split" and self.gpus_per_process not in (0, 1):
            raise UserError(
                f"gpus_per_process is {self.gpus_per_process} with placement=split: write 1, or placement=shared"
            )
