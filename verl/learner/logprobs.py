"""The LM head, only where it is needed: log-prob and entropy of policy tokens, in chunks.

The hidden states that predict policy tokens are picked first, so a prompt or a retrieved passage costs no logits. Where
the logits of all of them fit ``max_logits_mib``, their softmax is kept, in place, for the backward pass; otherwise they
exist one chunk at a time and the backward pass makes each chunk again (one more matmul, for memory that does not grow
with the number of tokens).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_MIB = 1 << 20
# Logits are turned into softmax and sums this much at a time: on CPU a block then stays in the cache over all passes.
_BLOCK_MIB = {"cpu": 4, "cuda": 64}


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
    exact = torch.promote_types(hidden.dtype, torch.float32)
    # Logits of half precision exist a second time, in full: that copy counts too.
    row_bytes = weight.shape[0] * (exact.itemsize + (hidden.element_size() if hidden.dtype != exact else 0))
    chunk = max(1, max_logits_mib * _MIB // row_bytes)
    logprobs, entropy = _ChunkedHead.apply(hidden, weight, targets, temperature, chunk, entropy_gradient)
    return logprobs, entropy


def top_logprobs(hidden: Tensor, weight: Tensor, top: int, *, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probs and ids of the ``top`` likeliest tokens, each ``[n, top]``, likeliest first; for a few positions."""
    values, ids = torch.log_softmax(_scaled_logits(hidden, weight, temperature), dim=-1).topk(top, dim=-1)
    return values, ids


class _ChunkedHead(torch.autograd.Function):
    """With z = logits / T and p = softmax(z): d logp / dz = onehot - p; d entropy / dz = -p (log p + entropy)."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, chunk: int, with_entropy: bool
    ) -> tuple[Tensor, Tensor]:
        exact = torch.promote_types(hidden.dtype, torch.float32)
        logprobs = torch.empty(len(targets), dtype=exact, device=hidden.device)
        entropy = torch.empty_like(logprobs)
        kept: Tensor | None = None
        for part in _parts(len(targets), chunk):
            z = _scaled_logits(hidden[part], weight, temperature)
            _softmax_in_place(z, targets[part], logprobs[part], entropy[part])
            kept = z if len(z) == len(targets) else None
            del z  # the next chunk must not stand beside this one
        ctx.save_for_backward(hidden, weight, targets, entropy)
        ctx.temperature, ctx.chunk, ctx.kept = temperature, chunk, kept
        ctx.set_materialize_grads(False)
        if not with_entropy:
            ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_logprobs: Tensor | None, grad_entropy: Tensor | None
    ) -> tuple[Tensor, Tensor | None, None, None, None, None]:
        hidden, weight, targets, entropy = ctx.saved_tensors
        grad_hidden = torch.zeros_like(hidden)
        # Over several chunks the sum is kept in full: in half precision each addition would round it. A frozen head
        # (with adapters) has none.
        whole = len(targets) <= ctx.chunk
        exact = weight.dtype if whole else entropy.dtype
        grad_weight = torch.zeros_like(weight, dtype=exact) if ctx.needs_input_grad[1] else None
        grad_logprobs = torch.zeros_like(entropy) if grad_logprobs is None else grad_logprobs
        for part in _parts(len(targets), ctx.chunk):
            p, ctx.kept = ctx.kept, None  # overwritten below: a second backward pass makes it again
            if p is None:
                p = _scaled_logits(hidden[part], weight, ctx.temperature)
                _softmax_in_place(p, targets[part])
            entropy_slope = None if grad_entropy is None else grad_entropy[part]
            _logits_grad_in_place(p, targets[part], grad_logprobs[part], entropy[part], entropy_slope)
            logits_grad = p.div_(ctx.temperature).to(hidden.dtype) if ctx.temperature != 1 else p.to(hidden.dtype)
            torch.mm(logits_grad, weight, out=grad_hidden[part])
            if grad_weight is not None:
                share = logits_grad.t() @ hidden[part]
                grad_weight = share if whole else grad_weight.add_(share)
                del share
            del p, logits_grad
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype), None, None, None, None


def _softmax_in_place(
    z: Tensor, targets: Tensor, logprobs: Tensor | None = None, entropy: Tensor | None = None
) -> None:
    """Logits ``z [n, vocabulary]`` become their softmax; ``logprobs [n]`` and ``entropy [n]`` are filled on the way."""
    for part in _blocks(z):
        block = z[part]
        p = torch.softmax(block, dim=-1)
        if logprobs is not None and entropy is not None:
            # p of the largest logit is at least 1 / vocabulary: its logarithm is safe where that of a target is not.
            largest, where = block.max(dim=-1, keepdim=True)
            log_z = (largest - p.gather(1, where).log()).squeeze(1)
            logprobs[part] = block.gather(1, targets[part, None]).squeeze(1) - log_z
            entropy[part] = log_z - torch.linalg.vecdot(p, block)
        block.copy_(p)


def _logits_grad_in_place(
    p: Tensor, targets: Tensor, grad_logprobs: Tensor, entropy: Tensor, grad_entropy: Tensor | None
) -> None:
    """Softmax ``p [n, vocabulary]`` becomes the gradient of the logits."""
    for part in _blocks(p):
        block = p[part]
        if grad_entropy is None:
            block.mul_(-grad_logprobs[part, None])
        else:
            # A p that underflowed to 0 has p log p = 0.
            slope = torch.special.xlogy(block, block) + entropy[part, None] * block
            block.mul_(-grad_logprobs[part, None]).addcmul_(slope, -grad_entropy[part, None])
        block.scatter_add_(1, targets[part, None], grad_logprobs[part, None])


def _parts(rows: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, rows, size)]


def _blocks(z: Tensor) -> list[slice]:
    row_bytes = z.shape[1] * z.element_size()
    return _parts(len(z), max(1, _BLOCK_MIB.get(z.device.type, 64) * _MIB // row_bytes))


def _scaled_logits(hidden: Tensor, weight: Tensor, temperature: float) -> Tensor:
    logits = hidden @ weight.t()
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return exact if temperature == 1.0 else exact.div_(temperature)
