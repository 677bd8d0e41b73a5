"""Checkpoints of a learner: sharded tensors by torch's distributed checkpoint, and a small JSON of progress.

A checkpoint is written beside its place and renamed when complete, so a folder of the final name is always whole.
Tensors are stored by Hugging Face name with their global shape: another number of ranks can load them.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.state_dict_loader import load as load_distributed
from torch.distributed.checkpoint.state_dict_saver import save as save_distributed
from torch.distributed.tensor import DTensor

from verl.errors import UserError
from verl.learner.optimizer import MOMENTS

_PROGRESS = "learner.json"
Group = dist.ProcessGroup | None
"""The ranks that agree on a save: None is the default group, which training uses too."""


@dataclass(frozen=True)
class Snapshot:
    """What one engine has to save, and its progress, JSON-ready."""

    tensors: dict[str, Tensor]
    progress: dict[str, Any]

    def on_host(self) -> Snapshot:
        """A copy that training cannot change. Copies to host memory; sharded tensors stay sharded."""
        return Snapshot({name: tensor.to("cpu", copy=True) for name, tensor in self.tensors.items()}, self.progress)


@contextmanager
def written_whole(folder: Path, group: Group = None) -> Iterator[Path]:
    """A folder to write into that takes the place of ``folder`` once the block ends without an error.

    Collective: every rank enters and leaves; rank 0 makes, renames and deletes.
    """
    partial, old = (folder.with_name(f".{folder.name}.{suffix}") for suffix in ("partial", "old"))
    if dist.get_rank() == 0:
        if old.exists() and not folder.exists():
            os.rename(old, folder)  # killed between the two renames below: the last good one
        for leftover in (partial, old):
            shutil.rmtree(leftover, ignore_errors=True)
        partial.mkdir(parents=True)
    dist.barrier(group)
    yield partial
    dist.barrier(group)
    if dist.get_rank() == 0:
        if folder.exists():
            os.rename(folder, old)
        os.rename(partial, folder)
        shutil.rmtree(old, ignore_errors=True)
    dist.barrier(group)


def snapshot(weights: Mapping[str, DTensor], optimizer: torch.optim.Optimizer, progress: Mapping[str, Any]) -> Snapshot:
    """Trained weights with their moments, random state and ``progress``, as they are: no copy."""
    tensors = _state(weights, optimizer)
    tensors["rng"] = torch.get_rng_state()
    taken = [int(state["step"]) for state in optimizer.state.values()]
    return Snapshot(tensors, {**progress, "adam_steps": taken[0] if taken else 0})


def write(folder: Path, parts: Mapping[str, Snapshot], links: Mapping[str, Path], group: Group = None) -> None:
    """Write each part to a folder of its name in ``folder``, which appears when whole. Collective.

    ``links``: parts that lie elsewhere already, whole, and will not change: the same files get a second name.
    """
    with written_whole(folder, group) as whole:
        for name, part in parts.items():
            save_distributed(dict(part.tensors), checkpoint_id=whole / name, process_group=group)
            if dist.get_rank() == 0:
                (whole / name / _PROGRESS).write_text(json.dumps(part.progress, indent=1))
        if dist.get_rank() == 0:
            for name, source in links.items():
                shutil.copytree(source, whole / name, copy_function=_link)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)


def same_phase(folder: Path, progress: Mapping[str, Any]) -> bool:
    """Whether a part of a checkpoint is there and was written in the phase that ``progress`` speaks of."""
    path = folder / _PROGRESS
    return path.is_file() and json.loads(path.read_text()) == json.loads(json.dumps(progress))


def read_progress(folder: Path) -> dict[str, Any]:
    """The ``progress`` that was saved. Raises UserError where there is no whole checkpoint."""
    path = folder / _PROGRESS
    if not path.is_file():
        raise UserError(f"{folder}: no {_PROGRESS} there; give the folder of a checkpoint")
    record: dict[str, Any] = json.loads(path.read_text())
    return record


def load(folder: Path, weights: Mapping[str, DTensor], optimizer: torch.optim.Optimizer, adam_steps: int) -> None:
    """Fill weights, the state of a fresh optimizer after ``adam_steps``, and the random state in place. Collective."""
    if adam_steps:
        _fill_state(weights, optimizer, adam_steps)
    state = {**_state(weights, optimizer), "rng": torch.get_rng_state()}
    load_tensors(folder, state)
    torch.set_rng_state(state["rng"])


def load_tensors(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Fill tensors in place with what was saved by their names, on any number of ranks. Collective."""
    load_distributed(tensors, checkpoint_id=folder)


def _state(weights: Mapping[str, DTensor], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {f"weight.{name}": parameter.detach() for name, parameter in weights.items()}
    for name, parameter in weights.items():
        moments = optimizer.state.get(parameter, {})
        state.update({f"{moment}.{name}": moments[moment] for moment in MOMENTS if moment in moments})
    return state


def _fill_state(weights: Mapping[str, DTensor], optimizer: torch.optim.Optimizer, adam_steps: int) -> None:
    """Give AdamW the state it would have after ``adam_steps``, with moments to be loaded into."""
    for parameter in weights.values():
        step = torch.tensor(float(adam_steps), device=parameter.device)
        moments: dict[str, Tensor] = {moment: torch.zeros_like(parameter) for moment in MOMENTS}
        optimizer.state[parameter] = {"step": step, **moments}
