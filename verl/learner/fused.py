"""Norms and rotary embeddings in few kernels: a decoder layer of ``transformers`` spends most of its launches on them.

A model keeps its own where ours does not compute the same: that is tried out, in float64, before anything is replaced.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

Rotary = Callable[..., tuple[Tensor, Tensor]]
_ROTARY = "apply_rotary_pos_emb"


def fuse(lm: PreTrainedModel) -> None:
    """Replace them in ``lm``, and the rotary function in the module that its attention is written in."""
    tried: dict[type[nn.Module], bool] = {}
    for module in lm.modules():
        kind = type(module)
        if kind.__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
            if kind not in tried:
                tried[kind] = _is_plain_norm(kind)
            if tried[kind]:
                module.forward = _NormForward(module)  # type: ignore[method-assign]
    written_in = sys.modules[type(lm.base_model.layers[0].self_attn).__module__]
    theirs = getattr(written_in, _ROTARY, None)
    if theirs is not None and theirs is not rotate and _is_plain_rotary(theirs):
        setattr(written_in, _ROTARY, rotate)


class _NormForward:
    """The forward of one norm."""

    def __init__(self, module: nn.Module) -> None:
        self._module: Any = module

    def __call__(self, hidden_states: Tensor) -> Tensor:
        """``[..., width]`` in and out, in the precision of the input."""
        normed: Tensor = _Norm.apply(hidden_states, self._module.weight, self._module.variance_epsilon)
        return normed


class _Norm(torch.autograd.Function):
    """``x / rms(x) * weight`` over the last dimension, computed in float32 or better and rounded once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        out, scale = torch.ops.aten._fused_rms_norm(x, weight.shape, weight, epsilon)
        ctx.save_for_backward(x, weight, scale)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, weight, scale = ctx.saved_tensors
        if x.is_cuda:
            wanted = list(ctx.needs_input_grad[:2])
            grads = torch.ops.aten._fused_rms_norm_backward(grad.contiguous(), x, weight.shape, scale, weight, wanted)
            return grads[0], grads[1], None
        unit = x.to(scale.dtype) * scale
        slope = grad * weight.to(scale.dtype)
        own = (grad * unit).flatten(0, -2).sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        along = torch.linalg.vecdot(slope, unit).unsqueeze_(-1).div_(x.shape[-1])
        return slope.addcmul_(unit, along, value=-1).mul_(scale).to(x.dtype), own, None


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *_: Any, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
    """Turn the halves of each head of ``q`` and ``k`` by the angles of its place, as ``apply_rotary_pos_emb`` does."""
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return _Rotate.apply(q, cos, sin), _Rotate.apply(k, cos, sin)


class _Rotate(torch.autograd.Function):
    """``(a, b) -> (a cos - b sin, b cos + a sin)``; backward turns the gradient back. No gradient for the angles."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turned(grad, cos, sin, -1), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    half = x.shape[-1] // 2
    out = x * cos
    out[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-sign)
    out[..., half:].addcmul_(x[..., :half], sin[..., half:], value=sign)
    return out


@torch.no_grad()
def _is_plain_norm(kind: type[nn.Module]) -> bool:
    try:
        theirs: Any = kind(8, eps=0.1)
    except TypeError:
        return False
    generator = torch.Generator().manual_seed(0)
    theirs.weight = nn.Parameter(torch.rand(8, generator=generator, dtype=torch.float64))
    x = torch.randn(5, 8, generator=generator, dtype=torch.float64)
    try:
        expected = theirs(x)
    except (TypeError, RuntimeError):
        return False
    return torch.allclose(expected, _Norm.apply(x, theirs.weight, 0.1), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def _is_plain_rotary(theirs: Rotary) -> bool:
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, heads, 5, 8, generator=generator, dtype=torch.float64) for heads in (2, 1))
    angles = torch.rand(1, 5, 4, generator=generator, dtype=torch.float64).repeat(1, 1, 2)
    try:
        expected = theirs(q, k, angles.cos(), angles.sin())
    except (TypeError, RuntimeError):
        return False
    ours = rotate(q, k, angles.cos(), angles.sin())
    return all(map(torch.allclose, ours, expected))
