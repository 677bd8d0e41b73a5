"""What a run takes of this machine against what there is: GPUs, memory, shared memory, disk."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path

_RAY_INSISTS_GIB = 1e10 / 2**30
"""An object store above this must find room in shared memory; a smaller one goes to disk where it does not."""

_SOLD_BY = 0.9
"""A card reports a little less than the size that it is sold by."""


def check_gpus(needed: float, present: int | None) -> list[str]:
    """A fault if a run on this machine alone claims more GPUs than it has; none if they cannot be counted."""
    if present is None or needed <= present:
        return []
    return [
        f"the run takes {needed:g} GPUs and this machine has {present}: run it where they are, write cluster.address= "
        "of a Ray cluster, or see what it would start with dry_run=true"
    ]


def check_card(planned_gib: float, present_gib: float | None) -> list[str]:
    """A fault if the plan is for larger GPUs than there are: what fits on paper would run out of memory at night."""
    if present_gib is None or present_gib >= planned_gib * _SOLD_BY:
        return []
    return [
        f"cluster.gpu_memory_gib={planned_gib:g} and the GPUs of this machine have {present_gib:.0f} GiB: write "
        f"cluster.gpu_memory_gib={present_gib:.0f}, by which the plan then checks what fits"
    ]


def check_memory(needed_gib: float, available_gib: float) -> list[str]:
    """A fault if what the run takes for certain (weights, optimizer, KV caches) exceeds this machine's free memory."""
    if needed_gib <= available_gib:
        return []
    return [
        f"the run takes {needed_gib:.1f} GiB of memory and {available_gib:.1f} GiB are free: lower "
        "rollout.engine.kv_cache_gib or rollout.workers (on GPUs learner.offload=none and "
        "trainer.save_in_background=false take none), take a smaller model, or stop other programs"
    ]


def check_shared_memory(weights_gib: float, store_gib: float, folder: Path = Path("/dev/shm")) -> list[str]:
    """A fault if shared memory cannot hold the files of weights, and a local Ray's object store where that goes there.

    A container has 64 MiB of it unless it was started with more.
    """
    free_gib = shutil.disk_usage(folder).free / 2**30
    store_gib = store_gib if store_gib <= free_gib or store_gib > _RAY_INSISTS_GIB else 0.0
    if weights_gib + store_gib <= free_gib:
        return []
    return [
        f"{folder} has {free_gib:.2f} GiB free and the run puts {weights_gib + store_gib:.2f} there "
        f"({weights_gib:.2f} of weights, {store_gib:.2f} of cluster.object_store_mib): start the container with "
        f"--shm-size={math.ceil(weights_gib + store_gib)}g, or on GPUs write weight_transfer=ipc or nccl (half of it)"
    ]


def check_disk(needed_gib: float, path: Path) -> list[str]:
    """A fault if ``path`` cannot be a folder, or if its disk has less room than the run's checkpoints take."""
    existing = next(parent for parent in (path, *path.resolve().parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        what = "is a file" if not existing.is_dir() else "may not be written to"
        return [f"run_dir={path}: {existing} {what}; write run_dir= with another folder"]
    free_gib = shutil.disk_usage(existing).free / 2**30
    if free_gib >= needed_gib:
        return []
    return [
        f"run_dir={path}: the checkpoints need about {needed_gib:.1f} GiB and {free_gib:.1f} GiB are free; free some, "
        "lower trainer.keep_checkpoints, or write run_dir= on another disk"
    ]
