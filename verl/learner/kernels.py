"""Triton kernels for what is no matrix product: PyTorch's operators would read and write the same tensors many times.

Each reads what it needs once and writes once, at the speed of a GPU's memory, and computes in float32. In half
precision it rounds where vLLM's kernels do (a norm before its weight, a gate before its product, rotary embeddings at
the end alone): rollout and learner are then off by the same roundings, and their log-probs nearer to each other than
each of them to the exact ones. On a CPU nobody calls them: there the same formulas stand in PyTorch's operators beside
each use, and tests hold one against the other (Triton's interpreter runs them without a GPU).
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

_BLOCK = 2048
_COLUMNS = 4096
_LOW = tl.constexpr(-1e30)
"""Below every logit, and finite: infinities make differences that are no number."""


def norm(x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """``x / rms(x) * weight`` over the last dimension, and ``1 / rms(x)`` in float32, ``[..., 1]``."""
    x = x.contiguous()
    width = x.shape[-1]
    out, scale = torch.empty_like(x), x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)
    _norm[(scale.numel(),)](x, weight, out, scale, width, epsilon, triton.next_power_of_2(width))
    return out, scale


def turn(x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> None:
    """Rotary embedding in place: ``x [1, tokens, heads, head_dim]`` by ``[1, tokens, head_dim]``.

    ``x`` may have any stride by token. ``sign`` is 1, or -1 to turn back.
    """
    _, tokens, heads, width = x.shape
    half = width // 2
    tile = triton.next_power_of_2(heads), triton.next_power_of_2(half)
    _turn[(tokens,)](x, cos, sin, x.stride(1), cos.stride(1), heads, half, sign, *tile)


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """``silu(gate) * up``, of the same shape."""
    out = torch.empty_like(gate)
    _gated[(triton.cdiv(gate.numel(), _BLOCK),)](gate, up, out, gate.numel(), _BLOCK)
    return out


def gated_backward(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``gate`` and ``up`` from that of ``silu(gate) * up``, and that product again."""
    outs = torch.empty_like(gate), torch.empty_like(gate), torch.empty_like(gate)
    _gated_backward[(triton.cdiv(gate.numel(), _BLOCK),)](grad, gate, up, *outs, gate.numel(), _BLOCK)
    return outs


def read_logits(
    logits: Tensor, targets: Tensor, temperature: float, logprobs: Tensor, entropy: Tensor, normalizer: Tensor
) -> None:
    """Fill ``logprobs``, ``entropy`` and ``normalizer`` (log-sum-exp), each ``[n]``, from ``[n, vocabulary]``.

    Of ``logits / temperature``; one pass, in which the largest so far is taken out of every exponent.
    """
    rows, columns = logits.shape
    outs = (logprobs, entropy, normalizer)
    _read_logits[(rows,)](logits, targets, *outs, columns, logits.stride(0), 1 / temperature, _COLUMNS, num_warps=8)


def logits_gradient(
    logits: Tensor,
    targets: Tensor,
    temperature: float,
    entropy: Tensor,
    normalizer: Tensor,
    grad_logprobs: Tensor,
    grad_entropy: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """The gradient of ``logits [n, vocabulary]`` in ``dtype``, in place where that is theirs.

    With z = logits / temperature and p = softmax(z): ``d logp / dz = onehot - p`` and
    ``d entropy / dz = -p (log p + entropy)``.
    """
    rows, columns = logits.shape
    out = logits if logits.dtype == dtype else torch.empty_like(logits, dtype=dtype)
    given = (entropy, normalizer, grad_logprobs, grad_logprobs if grad_entropy is None else grad_entropy)
    grid = (rows, triton.cdiv(columns, _COLUMNS))
    sizes = (columns, logits.stride(0), 1 / temperature)
    _logits_gradient[grid](logits, targets, *given, out, *sizes, grad_entropy is not None, _COLUMNS, num_warps=8)
    return out


@triton.jit  # type: ignore[untyped-decorator]
def _norm(x, weight, out, scale, width, epsilon, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    row, place = tl.program_id(0).to(tl.int64), tl.arange(0, WIDTH)
    inside = place < width
    given = tl.load(x + row * width + place, mask=inside, other=0.0).to(tl.float32)
    inverse = 1 / tl.sqrt(tl.sum(given * given, 0) / width + epsilon)
    unit = (given * inverse).to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + row * width + place, unit * tl.load(weight + place, mask=inside).to(tl.float32), mask=inside)
    tl.store(scale + row, inverse)


@triton.jit  # type: ignore[untyped-decorator]
def _turn(x, cos, sin, x_stride, angle_stride, heads, half, sign, HEADS: tl.constexpr, HALF: tl.constexpr):  # type: ignore[no-untyped-def]
    token = tl.program_id(0).to(tl.int64)
    head, place = tl.arange(0, HEADS)[:, None], tl.arange(0, HALF)[None, :]
    inside = (head < heads) & (place < half)
    first = x + token * x_stride + head * (2 * half) + place
    angle = token * angle_stride + place
    a = tl.load(first, mask=inside).to(tl.float32)
    b = tl.load(first + half, mask=inside).to(tl.float32)
    cos_a = tl.load(cos + angle, mask=place < half).to(tl.float32)
    cos_b = tl.load(cos + angle + half, mask=place < half).to(tl.float32)
    sin_a = tl.load(sin + angle, mask=place < half).to(tl.float32) * sign
    sin_b = tl.load(sin + angle + half, mask=place < half).to(tl.float32) * sign
    tl.store(first, a * cos_a - b * sin_a, mask=inside)
    tl.store(first + half, b * cos_b + a * sin_b, mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _gated(gate, up, out, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    g = tl.load(gate + place, mask=inside).to(tl.float32)
    u = tl.load(up + place, mask=inside).to(tl.float32)
    silu = (g * tl.sigmoid(g)).to(gate.dtype.element_ty).to(tl.float32)
    tl.store(out + place, silu * u, mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _gated_backward(grad, gate, up, grad_gate, grad_up, product, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    slope = tl.load(grad + place, mask=inside).to(tl.float32)
    g = tl.load(gate + place, mask=inside).to(tl.float32)
    u = tl.load(up + place, mask=inside).to(tl.float32)
    sigmoid = tl.sigmoid(g)
    tl.store(grad_gate + place, slope * u * (sigmoid + g * sigmoid * (1 - sigmoid)), mask=inside)
    silu = (g * sigmoid).to(gate.dtype.element_ty).to(tl.float32)
    tl.store(grad_up + place, slope * silu, mask=inside)
    tl.store(product + place, silu * u, mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _read_logits(  # type: ignore[no-untyped-def]
    logits, targets, logprobs, entropy, normalizer, columns, stride, cold, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    largest = tl.full((), _LOW, tl.float32)
    total = tl.full((), 0.0, tl.float32)  # of e^(z - largest)
    moment = tl.full((), 0.0, tl.float32)  # of e^(z - largest) (z - largest)
    for start in range(0, columns, BLOCK):
        place = start + tl.arange(0, BLOCK)
        z = tl.load(logits + row * stride + place, mask=place < columns, other=_LOW).to(tl.float32) * cold
        larger = tl.maximum(largest, tl.max(z, 0))
        shrunk = tl.exp(largest - larger)
        weight = tl.exp(z - larger)
        moment = shrunk * (moment + total * (largest - larger)) + tl.sum(weight * (z - larger), 0)
        total = total * shrunk + tl.sum(weight, 0)
        largest = larger
    chosen = tl.load(logits + row * stride + tl.load(targets + row)).to(tl.float32) * cold
    tl.store(logprobs + row, (chosen - largest) - tl.log(total))
    tl.store(entropy + row, tl.log(total) - moment / total)
    tl.store(normalizer + row, largest + tl.log(total))


@triton.jit  # type: ignore[untyped-decorator]
def _logits_gradient(  # type: ignore[no-untyped-def]
    logits,
    targets,
    entropy,
    normalizer,
    grad_logprobs,
    grad_entropy,
    out,
    columns,
    stride,
    cold,
    WITH_ENTROPY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = place < columns
    log_p = tl.load(logits + row * stride + place, mask=inside, other=_LOW).to(tl.float32) * cold
    log_p -= tl.load(normalizer + row)
    p = tl.exp(log_p)
    slope = tl.load(grad_logprobs + row)
    grad = tl.where(place == tl.load(targets + row), slope, 0.0) - slope * p
    if WITH_ENTROPY:
        grad -= tl.load(grad_entropy + row) * p * (log_p + tl.load(entropy + row))
    tl.store(out + row * stride + place, grad * cold, mask=inside)
