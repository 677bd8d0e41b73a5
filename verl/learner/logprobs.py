"""The LM head, only where it is needed: log-prob and entropy of policy tokens, in chunks.

The hidden states that predict policy tokens are picked first, so a prompt or a retrieved passage costs no logits. Where
all of them fit ``max_logits_mib`` one copy is kept for the backward pass; otherwise they exist one block at a time and
the backward pass makes each block again (one more matmul, for memory that does not grow with the number of tokens).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_MIB = 1 << 20


def policy_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    entropy_gradient: bool = False,
    max_logits_mib: int = 256,
) -> tuple[Tensor, Tensor]:
    """Log-prob of ``targets [n]`` and entropy (nats) under softmax(hidden @ weight.T / temperature).

    ``hidden [n, width]`` are the states that predict the targets, ``weight [vocabulary, width]`` is the LM head; both
    results are ``[n]``, float32 (float64 for float64 input). The log-prob is differentiable in ``hidden`` and
    ``weight``; the entropy where ``entropy_gradient`` asks for it.
    """
    row_bytes = weight.shape[0] * max(4, hidden.element_size())
    budget = max(1, max_logits_mib * _MIB // row_bytes)
    kept = len(targets) * (2 if entropy_gradient else 1) <= budget
    # Blocks of a quarter of the budget: the working copies of a block stay small beside what is kept.
    block = max(1, budget // 4)
    logprobs, entropy = _ChunkedHead.apply(hidden, weight, targets, temperature, block, kept, entropy_gradient)
    return logprobs, entropy


def top_logprobs(hidden: Tensor, weight: Tensor, top: int, *, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probs and ids of the ``top`` likeliest tokens, each ``[n, top]``, likeliest first; for a few positions."""
    values, ids = torch.log_softmax(_scaled_logits(hidden, weight, temperature), dim=-1).topk(top, dim=-1)
    return values, ids


class _ChunkedHead(torch.autograd.Function):
    """With z = logits / T and p = softmax(z): d logp / dz = onehot - p; d entropy / dz = -p (z - log Z + entropy)."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        temperature: float,
        block: int,
        kept: bool,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor]:
        exact = torch.promote_types(hidden.dtype, torch.float32)
        logprobs = torch.empty(len(targets), dtype=exact, device=hidden.device)
        log_z, entropy = torch.empty_like(logprobs), torch.empty_like(logprobs)
        for_backward: list[Tensor] = []
        for start in range(0, len(targets), block):
            part = slice(start, start + block)
            z = _scaled_logits(hidden[part], weight, temperature)
            p = torch.softmax(z, dim=-1)
            # p of the largest logit is at least 1 / vocabulary: its logarithm is safe where that of a target is not.
            largest, where = z.max(dim=-1, keepdim=True)
            log_z[part] = (largest - p.gather(1, where).log()).squeeze(1)
            logprobs[part] = z.gather(1, targets[part, None]).squeeze(1) - log_z[part]
            entropy[part] = log_z[part] - torch.linalg.vecdot(p, z)
            if kept:
                for_backward += [p, z] if with_entropy else [p]
        ctx.save_for_backward(hidden, weight, targets, log_z, entropy, *for_backward)
        ctx.temperature, ctx.block, ctx.with_entropy = temperature, block, with_entropy
        ctx.set_materialize_grads(False)
        if not with_entropy:
            ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_logprobs: Tensor | None, grad_entropy: Tensor | None
    ) -> tuple[Tensor, Tensor | None, None, None, None, None, None]:
        hidden, weight, targets, log_z, entropy, *saved = ctx.saved_tensors
        grad_hidden = torch.zeros_like(hidden)
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None  # a frozen head, with adapters
        grad_logprobs = torch.zeros_like(log_z) if grad_logprobs is None else grad_logprobs
        for number, start in enumerate(range(0, len(targets), ctx.block)):
            part = slice(start, start + ctx.block)
            p, z = _block(saved, number, ctx.with_entropy)
            if p is None:
                z = _scaled_logits(hidden[part], weight, ctx.temperature)
                p = torch.softmax(z, dim=-1)
            factor = grad_logprobs[part, None]
            if grad_entropy is not None and z is not None:
                factor = factor + (z - (log_z - entropy)[part, None]) * grad_entropy[part, None]
            grad = p * -factor
            grad.scatter_add_(1, targets[part, None], grad_logprobs[part, None])
            logits_grad = grad.div_(ctx.temperature).to(hidden.dtype)
            grad_hidden[part] = logits_grad @ weight
            if grad_weight is not None:
                grad_weight.addmm_(logits_grad.t(), hidden[part])
        return grad_hidden, grad_weight, None, None, None, None, None


def _block(saved: list[Tensor], number: int, with_entropy: bool) -> tuple[Tensor | None, Tensor | None]:
    """Softmax and logits of a block, as far as the forward pass kept them."""
    if not saved:
        return None, None
    return (saved[2 * number], saved[2 * number + 1]) if with_entropy else (saved[number], None)


def _scaled_logits(hidden: Tensor, weight: Tensor, temperature: float) -> Tensor:
    logits = hidden @ weight.t()
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return exact if temperature == 1.0 else exact.div_(temperature)
