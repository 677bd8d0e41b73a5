"""The learner's part of an on-policy step with old log-probs taken from the step itself, against computing them apart.

With one update a batch they are the same numbers; the extra forward pass is what most trainers pay for them.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch.distributed as dist

from bench.harness import Figure, main
from bench.learner.sizes import lognormal_lengths, sample_of, write_model
from verl.algorithms.config import LossConfig
from verl.learner.config import LearnerConfig, OptimizerConfig
from verl.learner.distributed import init_process
from verl.learner.learner import Learner
from verl.learner.phase import Phase


def measure(quick: bool) -> Iterator[Figure]:
    """Pairs in alternation; the median of the ratios. Gradient checkpointing is off."""
    rng = np.random.default_rng(0)
    samples = [sample_of(length, rng) for length in lognormal_lengths(12 if quick else 48, seed=0)]
    init_process(0, 1, "127.0.0.1", 0)
    with tempfile.TemporaryDirectory() as folder:
        learner = Learner(write_model(Path(folder)), LearnerConfig(max_tokens_per_microbatch=8192), seed=0)
    learner.begin_phase(Phase(OptimizerConfig(), LossConfig(), 100))
    ratios = []
    for _ in range(3 if quick else 8):
        start = time.perf_counter()
        learner.update(samples)
        middle = time.perf_counter()
        learner.logprobs(samples)
        learner.update(samples)
        ratios.append((time.perf_counter() - middle) / (middle - start))
    dist.destroy_process_group()
    yield Figure.at_least("on-policy step: apart / shortcut, time", statistics.median(ratios[1:]), "x", 1.2)


if __name__ == "__main__":
    main(measure)
