"""The LM head where the policy mask is 1, in chunks, against full float32 logits: log-prob and entropy, both ways.

1,024 positions of width 896, a vocabulary of 151,936, 35 % policy tokens (a Qwen2.5-0.5B head on a searching episode).
Memory is the peak of the resident set above what stood before, with the head frozen: its weights and their gradient
are the same in every variant.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from bench.harness import Figure, main
from verl.learner.logprobs import policy_logprobs

TOKENS, WIDTH, VOCABULARY, POLICY_SHARE = 1024, 896, 151_936, 0.35
GIB = 2**30
Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def full_logits(hidden: Tensor, weight: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """What a plain trainer computes: every position, masked afterwards."""
    logp = torch.log_softmax((hidden @ weight.t()).float(), dim=-1)
    entropy = -(logp.exp() * logp).sum(-1)
    chosen = logp.gather(1, targets[:, None]).squeeze(1)
    return -(chosen * mask).sum() / mask.sum() + 0.0 * (entropy.detach() * mask).sum()


def masked_chunks(hidden: Tensor, weight: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Ours: only where the mask is 1."""
    chosen, _ = policy_logprobs(hidden[mask], weight, targets[mask])
    return -chosen.mean()


def torch_masked(hidden: Tensor, weight: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """torch's chunked ``linear_cross_entropy`` on the same positions: no entropy, and no weights but one for all."""
    from torch.nn.functional import linear_cross_entropy  # since torch 2.12 or 2.13; cards may have 2.11

    options = torch.nn.LinearCrossEntropyOptions()
    return linear_cross_entropy(hidden[mask], weight, targets[mask], reduction="mean", options=options)


def run(loss: Loss, inputs: tuple[Tensor, Tensor, Tensor, Tensor], frozen: bool) -> tuple[float, float]:
    """Seconds of forward and backward, and the peak of memory in bytes above what stood before."""
    hidden, weight, targets, mask = inputs
    hidden, weight = hidden.detach().requires_grad_(), weight.detach().requires_grad_(not frozen)
    before = reset_peak()
    start = time.perf_counter()
    loss(hidden, weight, targets, mask).backward()  # type: ignore[no-untyped-call]
    seconds = time.perf_counter() - start
    return seconds, resident_peak() - before


def reset_peak() -> int:
    """Start counting the peak anew (Linux); returns the resident bytes now."""
    Path("/proc/self/clear_refs").write_text("5")
    return resident_peak()


def resident_peak() -> int:
    """Largest resident set since ``reset_peak``, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def measure(quick: bool) -> Iterator[Figure]:
    """Pairs in alternation, after a pass for memory; the median of each pair's ratio: a slow spell hits both.

    ``linear_cross_entropy`` takes most of a minute a pass, so it has two pairs, and none with ``quick``.
    """
    torch.manual_seed(0)
    hidden, weight = torch.randn(TOKENS, WIDTH), torch.randn(VOCABULARY, WIDTH) / WIDTH**0.5
    targets = torch.randint(0, VOCABULARY, (TOKENS,))
    inputs = (hidden, weight, targets, torch.rand(TOKENS) < POLICY_SHARE)
    variants: dict[str, Loss] = {"full": full_logits, "ours": masked_chunks}
    if not quick:
        variants["torch"] = torch_masked
    memory = {name: run(loss, inputs, frozen=True)[1] for name, loss in variants.items()}
    timings: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(1 if quick else 7):
        for name, loss in variants.items():
            if name == "torch" and turn > 1:
                continue
            timings[name].append(run(loss, inputs, frozen=False)[0])
    yield Figure.at_least("LM head: full float32 logits / ours, time", ratio(timings, "full"), "x", 1.9)
    yield Figure.at_most("LM head: ours / full, peak memory", memory["ours"] / memory["full"], "x", 0.25)
    yield Figure("LM head: ours", statistics.median(timings["ours"]), "s")
    yield Figure("LM head: ours, peak memory", memory["ours"] / GIB, "GiB")
    if quick:
        return
    yield Figure("LM head: torch linear_cross_entropy / ours, time", ratio(timings, "torch"), "x")
    yield Figure("LM head: torch linear_cross_entropy / ours, peak memory", memory["torch"] / memory["ours"], "x")


def ratio(timings: dict[str, list[float]], other: str) -> float:
    """How many times as long the other variant takes as ours: the median over the pairs that both have."""
    return statistics.median(theirs / ours for theirs, ours in zip(timings[other], timings["ours"], strict=False))


if __name__ == "__main__":
    main(measure)
