"""A packed update against a padded one, tokens a second: forward and backward on the same samples and model.

Lengths are log-normal, median 1,200, sigma 0.6, clipped at 4,096. The padded variant takes samples in their order and
pads to the longest of its micro-batch, under the same cap on tokens, padding included: the learner's default. Both
score policy tokens only.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from bench.harness import Figure, main
from bench.learner.sizes import lognormal_lengths, sample_of, write_model
from verl.data.batch import pack_samples
from verl.data.packing import pack
from verl.data.samples import TrainingSample
from verl.learner.attention import PACKED
from verl.learner.config import LearnerConfig
from verl.learner.flops import FlopsModel
from verl.learner.logprobs import policy_logprobs
from verl.learner.model import PolicyModel

CAP = LearnerConfig().max_tokens_per_microbatch


def packed_pass(model: PolicyModel, samples: Sequence[TrainingSample]) -> None:
    """What the learner does on one rank."""
    flops = FlopsModel.of(model.lm)
    for members in pack([len(s) for s in samples], CAP, 1, [flops.cost(s) for s in samples])[0]:
        logprobs, _ = model(pack_samples([samples[i] for i in members]), 1.0, False)
        logprobs.sum().backward()


def padded_pass(lm: PreTrainedModel, samples: Sequence[TrainingSample]) -> None:
    """What a padding trainer does."""
    for group in padded_groups(samples):
        ids, attention, positions, targets = pad(group)
        hidden = lm.base_model(input_ids=ids, attention_mask=attention, use_cache=False).last_hidden_state
        states = hidden.reshape(-1, hidden.shape[-1]).index_select(0, positions)
        logprobs, _ = policy_logprobs(states, lm.get_output_embeddings().weight, targets)
        logprobs.sum().backward()  # type: ignore[no-untyped-call]


def padded_groups(samples: Sequence[TrainingSample]) -> list[list[TrainingSample]]:
    """Samples in order, as many as fit the cap when padded to the longest."""
    groups: list[list[TrainingSample]] = []
    for sample in samples:
        if groups and max(map(len, [*groups[-1], sample])) * (len(groups[-1]) + 1) <= CAP:
            groups[-1].append(sample)
        else:
            groups.append([sample])
    return groups


def pad(group: Sequence[TrainingSample]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Right-padded ids and mask ``[samples, longest]``; places that predict policy tokens, flattened, and targets."""
    longest = max(map(len, group))
    ids, attention = torch.zeros(len(group), longest, dtype=torch.int64), torch.zeros(len(group), longest)
    positions, targets = [], []
    for row, sample in enumerate(group):
        tokens = torch.as_tensor(sample.token_ids, dtype=torch.int64)
        ids[row, : len(sample)], attention[row, : len(sample)] = tokens, 1
        chosen = np.flatnonzero(sample.policy_mask)
        positions.append(torch.as_tensor(chosen - 1 + row * longest))
        targets.append(tokens[chosen])
    return ids, attention, torch.cat(positions), torch.cat(targets)


def measure(quick: bool) -> Iterator[Figure]:
    """Pairs in alternation on the same samples; the median of the ratios."""
    rng = np.random.default_rng(0)
    samples = [sample_of(length, rng) for length in lognormal_lengths(12 if quick else 48, seed=0)]
    with tempfile.TemporaryDirectory() as folder:
        path = write_model(Path(folder))
        packed = PolicyModel(AutoModelForCausalLM.from_pretrained(path, attn_implementation=PACKED), 256)
        padded = AutoModelForCausalLM.from_pretrained(path, attn_implementation="sdpa")
    ratios, speeds = [], []
    tokens = sum(map(len, samples))
    for _ in range(2 if quick else 5):
        start = time.perf_counter()
        packed_pass(packed, samples)
        middle = time.perf_counter()
        padded_pass(padded, samples)
        end = time.perf_counter()
        ratios.append((end - middle) / (middle - start))
        speeds.append(tokens / (middle - start))
    name, ratio = "update: packed / padded, tokens a second", statistics.median(ratios[1:])
    # Twelve samples have a shorter tail than 48, and less padding: recorded only.
    yield Figure.at_least(name, ratio, "x", 2).judged(not quick)
    yield Figure("update: packed", statistics.median(speeds[1:]), "tokens/s")


if __name__ == "__main__":
    main(measure)
