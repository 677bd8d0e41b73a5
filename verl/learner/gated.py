"""A decoder layer's gated MLP, ``down(silu(gate(x)) * up(x))``: half as much of it is kept.

Autograd would keep four of them for each layer, which is most of what a micro-batch takes; here two are kept, and the
product is made again on the way back, together with its gradients.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear, silu

from verl.learner.parts import kernels_for


def fuse_gated(decoder: nn.Module) -> None:
    """Replace the MLPs of ``decoder`` that compute this, and have no adapter on their last product."""
    tried: dict[type[nn.Module], bool] = {}
    for layer in decoder.layers:  # type: ignore[union-attr]
        mlp = getattr(layer, "mlp", None)
        if mlp is None or type(getattr(mlp, "down_proj", None)) is not nn.Linear or mlp.down_proj.bias is not None:
            continue
        if type(mlp) not in tried:
            tried[type(mlp)] = is_gated(mlp)
        if tried[type(mlp)]:
            mlp.forward = GatedForward(mlp)


class GatedForward:
    """The forward of one MLP."""

    def __init__(self, module: nn.Module) -> None:
        self._module: Any = module

    def __call__(self, x: Tensor) -> Tensor:
        """``[..., width]`` in and out."""
        module = self._module
        out: Tensor = _Down.apply(module.gate_proj(x), module.up_proj(x), module.down_proj.weight)
        return out


class _Down(torch.autograd.Function):
    """``(silu(gate) * up) @ weight.T`` with ``gate`` and ``up`` of ``[..., wide]``."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up, weight)
        return linear(_product(gate, up), weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        gate, up, weight = ctx.saved_tensors
        grad = grad.flatten(0, -2)
        grad_gate, grad_up, product = _backward((grad @ weight).view_as(gate), gate, up)
        own = grad.t() @ product.flatten(0, -2) if ctx.needs_input_grad[2] else None
        return grad_gate, grad_up, own


def _product(gate: Tensor, up: Tensor) -> Tensor:
    kernels = kernels_for(gate)
    return kernels.gated(gate, up) if kernels else silu(gate) * up


def _backward(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of ``gate`` and ``up``, and the product."""
    if kernels := kernels_for(gate):
        return kernels.gated_backward(grad, gate, up)
    opened = silu(gate)
    return torch.ops.aten.silu_backward(grad * up, gate), grad * opened, opened * up


@torch.no_grad()
def is_gated(mlp: nn.Module) -> bool:
    """Whether a small one of its kind gives what ours gives."""
    small: Any = copy.copy(getattr(mlp, "config", None))
    try:
        small.hidden_size, small.intermediate_size = 8, 16
        theirs: Any = type(mlp)(small).double()
        x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        return torch.allclose(theirs(x), GatedForward(theirs)(x))
    except (TypeError, RuntimeError, AttributeError):
        return False
