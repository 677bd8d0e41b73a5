"""One phase's optimizer: AdamW, its learning-rate schedule, and the global gradient norm."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from verl.learner.config import OptimizerConfig

MOMENTS = ("exp_avg", "exp_avg_sq")
HOST = torch.device("cpu")


def learning_rate(config: OptimizerConfig, step: int, total_steps: int) -> float:
    """Learning rate of optimizer step ``step`` (from 0) of a phase of ``total_steps``.

    Rises over ``warmup_steps`` so that step 0 already moves, then follows ``config.schedule``.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    done = min(1.0, (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps))
    fallen = done if config.schedule == "linear" else (1 - math.cos(math.pi * done)) / 2
    return config.learning_rate * (1 - fallen * (1 - config.final_lr_fraction))


def make_optimizer(
    config: OptimizerConfig, parameters: Iterable[DTensor], faster: Iterable[DTensor] = (), ratio: float = 1.0
) -> torch.optim.AdamW:
    """AdamW on sharded parameters, fused; matrices decay, vectors (norms, biases) do not.

    ``faster`` are further matrices, whose rate is ``ratio`` times that of the others.
    """
    trained = list(parameters)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": config.weight_decay, "ratio": 1.0},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0, "ratio": 1.0},
    ]
    if quick := list(faster):
        groups.append({"params": quick, "weight_decay": config.weight_decay, "ratio": ratio})
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The learning rate of the next step."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["ratio"]


def move_moments(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Bring AdamW's running means and squares to ``device``: on a GPU for a step only, if they are offloaded."""
    for state in optimizer.state.values():
        for name in MOMENTS:
            state[name] = state[name].to(device, non_blocking=True)
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # a copy to host memory must have ended before the host's side is read


def global_grad_norm(parameters: Iterable[DTensor]) -> Tensor:
    """2-norm of the whole gradient, a float64 scalar equal on every rank; one collective."""
    grads = [p.grad for p in parameters if isinstance(p.grad, DTensor)]
    # Summed in float64: in float32 a million squares lose five digits, and how many depends on the number of ranks.
    total = torch.stack(torch._foreach_norm([grad.to_local() for grad in grads], dtype=torch.float64)).square().sum()
    mesh = grads[0].device_mesh
    total = total.to(mesh.device_type)  # gradients may lie in host memory
    dist.all_reduce(total, group=mesh.get_group(mesh.ndim - 1))  # over one copy; further copies have the same
    return total.sqrt()


def scale_gradients(parameters: Iterable[DTensor], factor: float) -> None:
    """Multiply every gradient by ``factor``, in place."""
    torch._foreach_mul_([p.grad.to_local() for p in parameters if isinstance(p.grad, DTensor)], factor)
