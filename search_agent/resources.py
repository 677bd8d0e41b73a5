"""What a run takes of this machine against what there is: GPUs, memory, disk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def check_gpus(needed: float, present: int | None) -> list[str]:
    """A fault if a run on this machine alone claims more GPUs than it has; none if they cannot be counted."""
    if present is None or needed <= present:
        return []
    return [
        f"the run takes {needed:g} GPUs and this machine has {present}: run it where they are, write cluster.address= "
        "of a Ray cluster, or see what it would start with dry_run=true"
    ]


def check_memory(needed_gib: float, available_gib: float) -> list[str]:
    """A fault if what the run takes for certain (weights, optimizer, KV caches) exceeds this machine's free memory."""
    if needed_gib <= available_gib:
        return []
    return [
        f"the run takes {needed_gib:.1f} GiB of memory and {available_gib:.1f} GiB are free: lower "
        "rollout.engine.kv_cache_gib or rollout.workers, take a smaller model, or stop other programs"
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
