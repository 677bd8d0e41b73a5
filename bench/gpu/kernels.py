"""The two kernels that are ours to choose, on a card or, tiny, on a CPU: the LM head in chunks, packed attention."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from bench.gpu.card import GIB
from bench.harness import Figure
from bench.learner.head import full_logits
from verl.learner.attention import AttentionLayout, packed_attention
from verl.learner.logprobs import policy_logprobs

TOKENS, WIDTH, VOCABULARY, POLICY_SHARE = 4096, 1536, 151_936, 0.35
CHUNKS_MIB = (64, 256, 1024, 8192)
HEADS, KV_HEADS, LENGTHS = 12, 2, (1900, 1100, 700, 396)
ATTENTION_ERROR = 5e-3
"""Of the largest value: bfloat16 keeps 8 bits."""


def head(on_card: bool) -> Iterator[Figure]:
    """Forward and backward of log-prob and entropy at the policy's positions, by chunk, against full logits."""
    device, (tokens, width, vocabulary) = _sizes(on_card)
    torch.manual_seed(0)
    hidden = torch.randn(tokens, width, device=device, dtype=torch.bfloat16 if on_card else torch.float32)
    weight = torch.randn(vocabulary, width, device=device, dtype=hidden.dtype) / width**0.5
    targets = torch.randint(0, vocabulary, (tokens,), device=device)
    mask = torch.rand(tokens, device=device) < POLICY_SHARE
    inputs = hidden.requires_grad_(), weight.requires_grad_(), targets, mask
    for mib in CHUNKS_MIB if on_card else CHUNKS_MIB[:2]:
        seconds, gib = _timed(partial(_chunked, mib, *inputs), device)
        yield from _row(f"head, chunks of {mib:,} MiB", seconds, gib)
    rounded = partial(_chunked, CHUNKS_MIB[1], *inputs, full=False)
    yield from _row(f"head, chunks of {CHUNKS_MIB[1]} MiB, logits rounded first", *_timed(rounded, device))
    yield from _row("head, full float32 logits", *_timed(partial(_full, *inputs), device))


def attention(on_card: bool) -> Iterator[Figure]:
    """Packed attention against SDPA a sequence: time both ways, and the difference from float64."""
    device = torch.device("cuda" if on_card else "cpu")
    lengths = LENGTHS if on_card else tuple(length // 50 for length in LENGTHS)
    dtype, total = torch.bfloat16 if on_card else torch.float32, sum(lengths)
    torch.manual_seed(0)
    for head_size in (64, 128):
        q, k, v = (
            torch.randn(1, count, total, head_size, device=device, dtype=dtype, requires_grad=True)
            for count in (HEADS, KV_HEADS, KV_HEADS)
        )
        ends = torch.tensor([0, *lengths], device=device).cumsum(0, dtype=torch.int32)
        layout = AttentionLayout(ends, lengths)
        exact = _by_sequence(q.double(), k.double(), v.double(), lengths)
        packed = partial(_packed, q, k, v, layout)
        off = ((packed() - exact).abs().max() / exact.abs().max()).item()
        yield Figure.at_most(f"attention, heads of {head_size}: off float64", off, "of max", ATTENTION_ERROR)
        for name, call in (("packed", packed), ("SDPA a sequence", partial(_by_sequence, q, k, v, lengths))):
            seconds, _ = _timed(partial(_both_ways, call), device)
            yield Figure(f"attention, heads of {head_size}, {name}: time", seconds * 1e3, "ms")


def _row(name: str, seconds: float, gib: float) -> Iterator[Figure]:
    yield Figure(f"{name}: time", seconds * 1e3, "ms")
    if gib:
        yield Figure(f"{name}: memory above inputs and gradients", gib, "GiB")


def release() -> None:
    """Give a card's memory to the processes that come next."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _sizes(on_card: bool) -> tuple[torch.device, tuple[int, int, int]]:
    if on_card:
        return torch.device("cuda"), (TOKENS, WIDTH, VOCABULARY)
    return torch.device("cpu"), (64, 32, 500)


def _chunked(mib: int, hidden: Tensor, weight: Tensor, targets: Tensor, mask: Tensor, *, full: bool = True) -> None:
    chosen, _ = policy_logprobs(hidden[mask], weight, targets[mask], max_logits_mib=mib, full=full)
    (-chosen.mean()).backward()


def _full(hidden: Tensor, weight: Tensor, targets: Tensor, mask: Tensor) -> None:
    full_logits(hidden, weight, targets, mask.to(torch.float32)).backward()


def _packed(q: Tensor, k: Tensor, v: Tensor, layout: AttentionLayout) -> Tensor:
    return packed_attention(torch.nn.Module(), q, k, v, None, layout=layout)[0]


def _by_sequence(q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """``[1, tokens, heads, head_size]``, as packed attention gives it."""
    qs, ks, vs = (x.split(lengths, dim=2) for x in (q, k, v))
    done = [
        scaled_dot_product_attention(qi, ki, vi, is_causal=True, enable_gqa=True)
        for qi, ki, vi in zip(qs, ks, vs, strict=True)
    ]
    return torch.cat(done, dim=2).transpose(1, 2)


def _both_ways(call: Callable[[], Tensor]) -> None:
    call().sum().backward()


def _timed(call: Callable[[], object], device: torch.device, repeats: int = 5) -> tuple[float, float]:
    """The fastest of some calls (s), and the peak of memory above what stood before (GiB, on a card)."""
    on_card, best, peak = device.type == "cuda", float("inf"), 0.0
    for _ in range(repeats):
        if on_card:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        began = time.perf_counter()
        call()
        if on_card:
            torch.cuda.synchronize()
            peak = (torch.cuda.max_memory_allocated() - before) / GIB
        best = min(best, time.perf_counter() - began)
    return best, peak
