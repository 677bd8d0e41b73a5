"""What of a decoder is computed by fewer kernels than its own code launches: most of a layer's launches are such.

Norms are here, rotary embeddings in ``rotary``, what makes queries, keys and values in ``joint``, gated MLPs in
``gated``; on a GPU they call ``kernels``. A model keeps its own where ours does not compute the same: that is tried
out, in float64, before anything is replaced.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from verl.learner.gated import fuse_gated
from verl.learner.joint import fuse_attention
from verl.learner.parts import decoder_of, kernels_for
from verl.learner.rotary import is_plain_rotary, rotate

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
    decoder = decoder_of(lm)
    fuse_attention(decoder)
    fuse_gated(decoder)
    written_in = sys.modules[type(decoder.layers[0].self_attn).__module__]
    theirs = getattr(written_in, _ROTARY, None)
    if theirs is not None and theirs is not rotate and is_plain_rotary(theirs):
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
    """``x / rms(x) * weight`` over the last dimension, computed in float32 or better."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        if kernels := kernels_for(x):
            out, scale = kernels.norm(x, weight, epsilon)
        else:
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
        # Products of two precisions are computed and kept in the better one: no copies are made for it.
        unit = x * scale
        own = (grad * unit).flatten(0, -2).sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        slope = grad * (weight * scale)
        along = torch.linalg.vecdot(slope, unit).unsqueeze(-1)
        return torch.addcmul(slope, unit, along, value=-1 / x.shape[-1], out=torch.empty_like(x)), own, None


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
