"""Norms, rotary embeddings and what makes queries, keys and values in few kernels: most of a layer's launches.

Gated MLPs are in ``gated``; on a GPU both call ``kernels``.

A model keeps its own where ours does not compute the same: that is tried out, in float64, before anything is replaced.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear
from transformers import PreTrainedModel

from verl.learner.attention import PACKED, AttentionLayout, packed_attention
from verl.learner.gated import fuse_gated
from verl.learner.parts import decoder_of, has_kernels

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
    decoder = decoder_of(lm)
    attention = decoder.layers[0].self_attn
    if decoder.config._attn_implementation == PACKED and _is_plain_attention(attention):
        for layer in decoder.layers:
            layer.self_attn.forward = _AttentionForward(layer.self_attn)
    fuse_gated(decoder)
    written_in = sys.modules[type(attention).__module__]
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
    """``x / rms(x) * weight`` over the last dimension, computed in float32 or better."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        if has_kernels(x):
            from verl.learner import kernels

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


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *_: Any, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
    """Turn the halves of each head of ``q`` and ``k`` by the angles of its place, as ``apply_rotary_pos_emb`` does."""
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return _Rotate.apply(q, cos, sin), _Rotate.apply(k, cos, sin)


class _Rotate(torch.autograd.Function):
    """``(a, b) -> (a cos - b sin, b cos + a sin)``; backward turns the gradient back. No gradient for the angles."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned_heads(x, cos, sin, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turned_heads(grad, cos, sin, -1), None, None


def _turned_heads(x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    """Of ``[1, heads, tokens, head_dim]``, by ``[1, 1, tokens, head_dim]``."""
    if not has_kernels(x):
        return _turned(x, cos, sin, sign)
    by_token = x.transpose(1, 2).clone(memory_format=torch.contiguous_format)
    _turn(by_token, cos.squeeze(1), sin.squeeze(1), sign)
    return by_token.transpose(1, 2)


def _turned(x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    half = x.shape[-1] // 2
    out = x * cos
    out[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-sign)
    out[..., half:].addcmul_(x[..., :half], sin[..., half:], value=sign)
    return out


class _AttentionForward:
    """The forward of one attention without norms of queries and keys, over packed sequences."""

    def __init__(self, module: nn.Module) -> None:
        self._module: Any = module

    def __call__(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        **options: Any,
    ) -> tuple[Tensor, None]:
        """``[1, tokens, width]`` in and out, and no attention weights."""
        module = self._module
        made_by = (module.q_proj, module.k_proj, module.v_proj)
        weights = [part for linear in made_by for part in (linear.weight, linear.bias)]
        states = _TurnedStates.apply(hidden_states, *position_embeddings, module.head_dim, *weights)
        query, key, value = (x.transpose(1, 2) for x in states)
        attended, _ = packed_attention(
            module,
            query,
            key,
            value,
            attention_mask,
            scaling=module.scaling,
            sliding_window=getattr(module, "sliding_window", None),
            dropout=module.attention_dropout if module.training else 0.0,
            **options,
        )
        return module.o_proj(attended.flatten(2)), None


class _TurnedStates(torch.autograd.Function):
    """Queries, keys and values by one product, the former two turned; backward is one product a side as well.

    The three weights are laid end to end for it, twice: kept in between, they would cost their memory once more.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, head_dim: int, *weights: Any) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x, cos, sin, *weights[::2])
        ctx.heads = [len(weight) // head_dim for weight in weights[::2]]
        bias = None if weights[1] is None else torch.cat(weights[1::2])
        states = linear(x, torch.cat(weights[::2]), bias).unflatten(-1, (-1, head_dim))
        _turn(states[..., : -ctx.heads[2], :], cos, sin, 1)
        return states.split(ctx.heads, dim=-2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, cos, sin, *weights = ctx.saved_tensors
        grad = torch.cat(grads, dim=-2)
        _turn(grad[..., : -ctx.heads[2], :], cos, sin, -1)
        grad = grad.flatten(0, 1).flatten(1)
        sizes = [len(weight) for weight in weights]
        result: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
        if ctx.needs_input_grad[0]:
            result[0] = (grad @ torch.cat(weights)).view_as(x)
        if any(ctx.needs_input_grad[4::2]):
            result[4::2] = (grad.t() @ x.flatten(0, 1)).split(sizes)
        if any(ctx.needs_input_grad[5::2]):
            result[5::2] = grad.sum(0).split(sizes)
        return tuple(result)


def _turn(x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> None:
    """``_turned`` in place, of ``[1, tokens, heads, head_dim]`` by ``[1, tokens, head_dim]``."""
    if has_kernels(x):
        from verl.learner import kernels

        kernels.turn(x, cos, sin, sign)
        return
    x.copy_(_turned(x, cos.unsqueeze(-2), sin.unsqueeze(-2), sign))


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


@torch.no_grad()
def _is_plain_attention(attention: nn.Module) -> bool:
    """Whether a small one of its kind, with biases where this has them, gives what ours gives."""
    linears = [getattr(attention, f"{name}_proj", None) for name in "qkv"]
    biases = {linear.bias is None for linear in linears if type(linear) is nn.Linear}
    if len(biases) != 1 or any(type(linear) is not nn.Linear for linear in linears):
        return False
    generator = torch.Generator().manual_seed(0)
    x, angles = (torch.randn(1, 5, width, generator=generator, dtype=torch.float64) for width in (16, 4))
    angles = angles.repeat(1, 1, 2)
    layout = AttentionLayout(torch.tensor([0, 5], dtype=torch.int32), (5,))
    small: Any = copy.copy(getattr(attention, "config", None))
    try:
        small.hidden_size, small.head_dim, small.num_attention_heads, small.num_key_value_heads = 16, 8, 4, 2
        theirs: Any = type(attention)(small, layer_idx=0).double()
        for weight in theirs.parameters():
            weight.copy_(torch.rand(weight.shape, generator=generator, dtype=torch.float64))
        expected, _ = theirs(x, (angles.cos(), angles.sin()), None, layout=layout)
        ours, _ = _AttentionForward(theirs)(x, (angles.cos(), angles.sin()), None, layout=layout)
    except (TypeError, RuntimeError, AttributeError, NotImplementedError):
        return False
    return torch.allclose(ours, expected)
