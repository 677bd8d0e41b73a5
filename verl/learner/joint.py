"""Queries, keys and values by one product: the forward of attentions without norms of queries and keys."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from verl.learner.attention import PACKED, AttentionLayout, packed_attention
from verl.learner.rotary import turn


def fuse_attention(decoder: Any) -> None:
    """Replace the attentions of ``decoder`` that compute this, over packed sequences."""
    if decoder.config._attn_implementation == PACKED and is_plain_attention(decoder.layers[0].self_attn):
        for layer in decoder.layers:
            layer.self_attn.forward = AttentionForward(layer.self_attn)


class AttentionForward:
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
        turn(states[..., : -ctx.heads[2], :], cos, sin, 1)
        return states.split(ctx.heads, dim=-2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, cos, sin, *weights = ctx.saved_tensors
        grad = torch.cat(grads, dim=-2)
        turn(grad[..., : -ctx.heads[2], :], cos, sin, -1)
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


@torch.no_grad()
def is_plain_attention(attention: nn.Module) -> bool:
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
        ours, _ = AttentionForward(theirs)(x, (angles.cos(), angles.sin()), None, layout=layout)
    except (TypeError, RuntimeError, AttributeError, NotImplementedError):
        return False
    return torch.allclose(ours, expected)
