"""The LM head, only where it is needed: log-prob and entropy of policy tokens, in chunks.

The hidden states that predict policy tokens are picked first, so a prompt or a retrieved passage costs no logits. Where
the logits of all of them fit ``max_logits_mib``, they are kept for the backward pass; otherwise they exist one chunk at
a time and the backward pass makes each chunk again (one more matmul, for memory that does not grow with the number of
tokens). On a GPU logits are read once on each way (``kernels``); on a CPU they become their softmax in place, block by
block, and the backward pass need not take exponents again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from verl.learner.holdings import BLOCK_MIB
from verl.learner.parts import kernels_for

_MIB = 1 << 20


def policy_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    entropy_gradient: bool = False,
    max_logits_mib: int = 256,
    full: bool = True,
) -> tuple[Tensor, Tensor]:
    """Log-prob of ``targets [n]`` and entropy (nats) under softmax(hidden @ weight.T / temperature).

    ``hidden [n, width]`` are the states that predict the targets, ``weight [vocabulary, width]`` is the LM head; both
    results are ``[n]``, float32 (float64 for float64 input). The log-prob is differentiable in ``hidden`` and
    ``weight``; the entropy where ``entropy_gradient`` asks for it. ``full``: logits of half precision are written as
    they are summed, in float32, and not rounded first.
    """
    exact = torch.promote_types(hidden.dtype, torch.float32)
    # Logits of half precision, or their gradient, exist a second time: that copy counts too.
    row_bytes = weight.shape[0] * (exact.itemsize + (hidden.element_size() if hidden.dtype != exact else 0))
    chunk = max(1, max_logits_mib * _MIB // row_bytes)
    logprobs, entropy = _ChunkedHead.apply(hidden, weight, targets, temperature, chunk, entropy_gradient, full)
    return logprobs, entropy


def top_logprobs(
    hidden: Tensor, weight: Tensor, top: int, *, temperature: float = 1.0, full: bool = True
) -> tuple[Tensor, Tensor]:
    """Log-probs and ids of the ``top`` likeliest tokens, each ``[n, top]``, likeliest first; for a few positions."""
    logits = _scaled(_logits(hidden, _head(weight, full), full), temperature)
    values, ids = torch.log_softmax(logits, dim=-1).topk(top, dim=-1)
    return values, ids


class _ChunkedHead(torch.autograd.Function):
    """With z = logits / T and p = softmax(z): d logp / dz = onehot - p; d entropy / dz = -p (log p + entropy)."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        temperature: float,
        chunk: int,
        with_entropy: bool,
        full: bool,
    ) -> tuple[Tensor, Tensor]:
        exact = torch.promote_types(hidden.dtype, torch.float32)
        logprobs = torch.empty(len(targets), dtype=exact, device=hidden.device)
        entropy, normalizer = torch.empty_like(logprobs), torch.empty_like(logprobs)
        kept: Tensor | None = None
        head, kernels = _head(weight, full), kernels_for(hidden)
        for part in _parts(len(targets), chunk):
            z = _logits(hidden[part], head, full)
            if kernels:
                kernels.read_logits(z, targets[part], temperature, logprobs[part], entropy[part], normalizer[part])
            else:
                _softmax_in_place(_scaled(z, temperature), targets[part], logprobs[part], entropy[part])
            kept = z if len(z) == len(targets) else None
            del z  # the next chunk must not stand beside this one
        ctx.save_for_backward(hidden, weight, targets, entropy, normalizer)
        ctx.temperature, ctx.chunk, ctx.kept, ctx.full = temperature, chunk, kept, full
        ctx.set_materialize_grads(False)
        if not with_entropy:
            ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logprobs: Tensor | None, grad_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, entropy, normalizer = ctx.saved_tensors
        grad_hidden = torch.zeros_like(hidden)
        # Over several chunks the sum is kept in full: in half precision each addition would round it. A frozen head
        # (with adapters) has none.
        whole = len(targets) <= ctx.chunk
        grad_weight: Tensor | None = None
        grad_logprobs = torch.zeros_like(entropy) if grad_logprobs is None else grad_logprobs
        head: Tensor | None = None
        kernels = kernels_for(hidden)
        for part in _parts(len(targets), ctx.chunk):
            z, ctx.kept = ctx.kept, None  # overwritten below: a second backward pass makes it again
            if z is None:
                head = _head(weight, ctx.full) if head is None else head
                z = _logits(hidden[part], head, ctx.full)
                if not kernels:
                    _softmax_in_place(_scaled(z, ctx.temperature), targets[part])
            slopes = grad_logprobs[part], None if grad_entropy is None else grad_entropy[part]
            if kernels:
                known = targets[part], ctx.temperature, entropy[part], normalizer[part]
                logits_grad = kernels.logits_gradient(z, *known, *slopes, hidden.dtype)
            else:
                _logits_grad_in_place(z, targets[part], entropy[part], *slopes)
                logits_grad = _scaled(z, ctx.temperature).to(hidden.dtype)
            torch.mm(logits_grad, weight, out=grad_hidden[part])
            if ctx.needs_input_grad[1]:
                grad_weight = _add_share(
                    grad_weight, logits_grad, hidden[part], weight.dtype if whole else entropy.dtype
                )
            del z, logits_grad
        if ctx.needs_input_grad[1]:
            grad_weight = torch.zeros_like(weight) if grad_weight is None else grad_weight.to(weight.dtype)
        return grad_hidden, grad_weight, *[None] * 5


def _add_share(total: Tensor | None, logits_grad: Tensor, hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """The gradient of the head's weight, ``[vocabulary, width]`` of ``dtype``, with that of one chunk; in place."""
    left = logits_grad.t()
    if hidden.dtype == dtype:
        return left @ hidden if total is None else total.addmm_(left, hidden)
    if hidden.is_cuda:  # one operator takes half precision and gives float32
        if total is None:
            return torch.mm(left, hidden, out_dtype=dtype)
        return torch.addmm(total, left, hidden, out_dtype=dtype, out=total)
    return (left @ hidden).to(dtype) if total is None else total.add_(left @ hidden)


def _softmax_in_place(
    z: Tensor, targets: Tensor, logprobs: Tensor | None = None, entropy: Tensor | None = None
) -> None:
    """Logits ``z [n, vocabulary]`` become their softmax; ``logprobs [n]`` and ``entropy [n]`` are filled on the way."""
    for part in _blocks(z):
        block = z[part]
        p = torch.softmax(block, dim=-1)
        if logprobs is not None and entropy is not None:
            # p of the largest logit is at least 1 / vocabulary: its logarithm is safe where that of a target is not.
            # It is added last: the sum of a large logit and a small logarithm would round the latter away.
            largest, where = block.max(dim=-1, keepdim=True)
            log_p = p.gather(1, where).log().squeeze(1)
            logprobs[part] = (block.gather(1, targets[part, None]) - largest).squeeze(1) + log_p
            entropy[part] = largest.squeeze(1) - torch.linalg.vecdot(p, block) - log_p
        block.copy_(p)


def _logits_grad_in_place(
    p: Tensor, targets: Tensor, entropy: Tensor, grad_logprobs: Tensor, grad_entropy: Tensor | None
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
    return _parts(len(z), max(1, BLOCK_MIB * _MIB // row_bytes))


def _head(weight: Tensor, full: bool) -> Tensor:
    """What hidden states are multiplied by: on a GPU one operator takes half precision and gives float32."""
    return weight.to(torch.promote_types(weight.dtype, torch.float32)) if full and not weight.is_cuda else weight


def _logits(hidden: Tensor, head: Tensor, full: bool) -> Tensor:
    """In float32 or better, before the temperature."""
    exact = torch.promote_types(hidden.dtype, torch.float32)
    if full and hidden.is_cuda and hidden.dtype != exact:
        return torch.mm(hidden, head.t(), out_dtype=exact)
    return (hidden.to(head.dtype) @ head.t()).to(exact)


def _scaled(z: Tensor, temperature: float) -> Tensor:
    return z if temperature == 1.0 else z.div_(temperature)
