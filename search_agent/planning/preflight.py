"""What can be known to fail before any process is started, by arithmetic and small files, all of it told together."""

from __future__ import annotations

from pathlib import Path

from search_agent.config import RunConfig
from search_agent.manifests import address_faults
from search_agent.planning.model_folder import model_faults
from search_agent.planning.plan import gpus_needed, make_plan
from search_agent.planning.resources import check_card, check_disk, check_gpus, check_memory, check_shared_memory
from search_agent.planning.sizes import disk_gib, machine_gib, shared_memory_gib
from verl.cluster.capacity import engine_needs_gpus, largest_gpu_gib, local_gpus
from verl.cluster.config import ClusterConfig
from verl.cluster.processes import available_memory_gib
from verl.cluster.ray_runtime import path_faults
from verl.errors import refuse
from verl.model_shape import EMBEDDED, ModelShape, is_known, read_shape


def check_start(config: RunConfig, path: Path) -> None:
    """Raises UserError with every fault of a run in the folder ``path``, of the configuration and of this machine."""
    refuse(config_faults(config) + machine_faults(config, path))


def config_faults(config: RunConfig) -> list[str]:
    """What forbids the run on any machine: the model's folder, addresses, what the plan cannot place or hold."""
    faults = model_faults(config) + address_faults(config)
    if getattr(config.environment.config, "plays_alone", False):
        faults.append(f"environment.plugin={config.environment.module} is for evaluation: it cannot be trained on")
    shape = known_shape(config)
    problems = make_plan(config, shape).problems if shape is not None else []
    return faults + problems + transfer_faults(config.rollout.engine.weight_transfer, config.cluster)


def machine_faults(config: RunConfig, path: Path) -> list[str]:
    """What this machine lacks for the run: GPUs, memory, shared memory, room on the disk that holds ``path``."""
    faults = path_faults(config.cluster)
    alone = config.cluster.address == "local"
    if alone:
        faults += check_gpus(gpus_needed(config), local_gpus()) or build_faults(config.cluster, engine_needs_gpus())
        faults += check_card(config.cluster.gpu_memory_gib, largest_gpu_gib() if gpus_needed(config) else None)
    shape = known_shape(config)
    faults += check_disk(disk_gib(config, shape) if shape is not None else 0.0, path)
    if shape is not None and (alone or not config.cluster.gpus_per_process):
        faults += check_memory(machine_gib(config, shape), available_memory_gib())
    if shape is not None and alone:
        faults += check_shared_memory(shared_memory_gib(config, shape), config.cluster.object_store_mib / 1024)
    return faults


def known_shape(config: RunConfig) -> ModelShape | None:
    """The model's shape; None if its folder has a fault, or for a hub's model that is to be downloaded first."""
    if config.model == "embedded":
        return EMBEDDED
    if model_faults(config) or not (Path(config.model).exists() or is_known(config.model)):
        return None
    return read_shape(config.model)


def build_faults(cluster: ClusterConfig, for_gpus: bool) -> list[str]:
    """Why this Python cannot compute where ``cluster.gpus_per_process`` says; ``for_gpus`` is what its vLLM is for."""
    if bool(cluster.gpus_per_process) == for_gpus:
        return []
    asked, built, kind = ("the CPU", "GPUs", "cpu") if for_gpus else ("GPUs", "the CPU", "gpu")
    remedy = "write hardware=gpu1, or install the other: " if for_gpus else "install the other: "
    return [
        f"cluster.gpus_per_process={cluster.gpus_per_process:g} computes on {asked}, and this Python has vLLM's build "
        f"for {built}: {remedy}SLEUTH_ACCELERATOR={kind} bash cmd/setup.sh"
    ]


def transfer_faults(transfer: str, cluster: ClusterConfig) -> list[str]:
    """Why weights cannot travel in the way that ``rollout.engine.weight_transfer`` names."""
    why = ""
    if transfer != "shm" and not cluster.gpus_per_process:
        why = "goes from GPU to GPU, and cluster.gpus_per_process is 0: write shm"
    elif transfer == "ipc" and cluster.placement == "split":
        why = "maps memory of a learner rank on the engine's own GPU, and placement=split has none there: write nccl"
    elif transfer == "nccl" and cluster.placement == "shared":
        why = "takes a GPU for each process, and placement=shared has the learner on the engine's: write ipc"
    return [f"rollout.engine.weight_transfer={transfer} {why}"] if why else []
