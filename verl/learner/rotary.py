"""Rotary embeddings in few kernels: the halves of each head of queries and keys, turned by the angles of a place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from verl.learner.parts import kernels_for

Rotary = Callable[..., tuple[Tensor, Tensor]]


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
    if not kernels_for(x):
        return _turned(x, cos, sin, sign)
    by_token = x.transpose(1, 2).clone(memory_format=torch.contiguous_format)
    turn(by_token, cos.squeeze(1), sin.squeeze(1), sign)
    return by_token.transpose(1, 2)


def _turned(x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    half = x.shape[-1] // 2
    out = x * cos
    out[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-sign)
    out[..., half:].addcmul_(x[..., :half], sin[..., half:], value=sign)
    return out


def turn(x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> None:
    """``_turned`` in place, of ``[1, tokens, heads, head_dim]`` by ``[1, tokens, head_dim]``."""
    if kernels := kernels_for(x):
        kernels.turn(x, cos, sin, sign)
        return
    x.copy_(_turned(x, cos.unsqueeze(-2), sin.unsqueeze(-2), sign))


@torch.no_grad()
def is_plain_rotary(theirs: Rotary) -> bool:
    """Whether a model's own function gives what ``rotate`` gives."""
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, heads, 5, 8, generator=generator, dtype=torch.float64) for heads in (2, 1))
    angles = torch.rand(1, 5, 4, generator=generator, dtype=torch.float64).repeat(1, 1, 2)
    try:
        expected = theirs(q, k, angles.cos(), angles.sin())
    except (TypeError, RuntimeError):
        return False
    ours = rotate(q, k, angles.cos(), angles.sin())
    return all(map(torch.allclose, ours, expected))
