"""How many GPUs there are, on this machine or in a running Ray cluster: asked before anything is started."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from verl.errors import InfrastructureError, UserError


def local_gpus(devices: Iterable[Path] | None = None, visible: str | None = None) -> int | None:
    """NVIDIA GPUs that a process of this machine may use; None where that cannot be seen (a GPU without a device file).

    ``devices`` are the files of ``/dev``, ``visible`` is ``CUDA_VISIBLE_DEVICES``; both are read where not given.
    """
    names = [path.name for path in (Path("/dev").iterdir() if devices is None else devices)]
    if "dxg" in names:  # Windows' own kernel
        return None
    count = sum(bool(re.fullmatch(r"nvidia\d+", name)) for name in names)
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES") if visible is None else visible
    return count if chosen is None else min(count, len([part for part in chosen.split(",") if part.strip()]))


def cluster_gpus(address: str) -> float:
    """GPUs of the cluster at ``address`` (``auto`` or HOST:PORT), busy ones included.

    Raises InfrastructureError if there is no such cluster.
    """
    import ray

    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False)
    except (ConnectionError, RuntimeError, OSError) as error:
        raise InfrastructureError(f"cluster.address={address}: no Ray cluster answers there ({error})") from error
    try:
        return float(ray.cluster_resources().get("GPU", 0.0))
    finally:
        ray.shutdown()


def check_shared_memory(weights_gib: float, store_gib: float, folder: Path = Path("/dev/shm")) -> None:
    """Whether shared memory holds what a run puts there: two versions of the weights, and a local Ray's object store.

    ``weights_gib`` is one version in the engine's dtype where it travels as a file, else 0. Raises UserError.
    """
    needed, free = 2 * weights_gib + store_gib, shutil.disk_usage(folder).free / 2**30
    if needed > free:
        raise UserError(
            f"{folder} has {free:.2g} GiB free, the run needs {needed:.2g} ({store_gib:.2g} for Ray's objects, twice "
            f"{weights_gib:.2g} for weights): start the container with --shm-size={int(needed) + 1}g, or write "
            "rollout.engine.weight_transfer=ipc or nccl on GPUs"
        )
