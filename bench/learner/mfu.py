"""Model FLOPs utilisation of an update on GPUs: Qwen2-1.5B's shape, bfloat16, packs of 4,096 tokens.

    python -m bench.learner.mfu                                          # one GPU
    python -m torch.distributed.run --nproc-per-node 8 -m bench.learner.mfu

Needs torch, transformers and this repository: no Ray, no vLLM, no Hydra. FLOPs are those of the formula: causal
attention counts half, the LM head only where it ran, recomputation not at all. Without a GPU a tiny shape is run on the
CPU, which shows that the command works and measures nothing.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from transformers import Qwen2Config, Qwen2ForCausalLM

from bench.harness import Figure, main
from bench.learner.sizes import VOCABULARY, lognormal_lengths, sample_of, write_model
from verl.algorithms.config import LossConfig
from verl.learner.__main__ import join_group, timed_update
from verl.learner.config import LearnerConfig, OptimizerConfig
from verl.learner.learner import Learner
from verl.learner.phase import Phase

CAP, SEQUENCES_PER_RANK, STEPS = 4096, 48, 6
# Dense bfloat16 peak of one GPU in TFLOP/s, by a part of its name (the makers' data sheets).
PEAKS = {"H200": 989.0, "H100": 989.0, "H800": 989.0, "A100": 312.0, "A800": 312.0, "L40S": 362.0}


def measure(quick: bool) -> Iterator[Figure]:
    """The median of the steps after the first two, which warm up."""
    os.environ.setdefault("MASTER_PORT", "29573")
    device = join_group()
    on_gpu = device == "cuda"
    folder = Path(tempfile.gettempdir()) / f"sleuth-mfu-{os.environ['MASTER_PORT']}"
    if dist.get_rank() == 0:
        write_qwen2(folder) if on_gpu else write_model(folder)
    dist.barrier()
    config = LearnerConfig(max_tokens_per_microbatch=CAP, compute_dtype="bfloat16" if on_gpu else "float32")
    learner = Learner(folder, config, seed=0)
    learner.begin_phase(Phase(OptimizerConfig(), LossConfig(), STEPS))
    rng = np.random.default_rng(0)
    count = SEQUENCES_PER_RANK * dist.get_world_size() if on_gpu else 4
    samples = [sample_of(length, rng) for length in lognormal_lengths(count, seed=0)]
    steps = [timed_update(learner, samples, 1.0) for _ in range(3 if quick or not on_gpu else STEPS)]
    speeds = {
        key: statistics.median(step[key] for step in steps[2:]) for key in ("tflops_per_rank", "tokens_per_second")
    }
    first, ranks = dist.get_rank() == 0, dist.get_world_size()
    dist.destroy_process_group()
    if not first:
        return
    name = torch.cuda.get_device_name() if on_gpu else "no GPU: a tiny shape on the CPU"
    yield Figure(f"update on {ranks} x {name}", speeds["tokens_per_second"], "tokens/s")
    yield Figure("model TFLOP/s a rank", speeds["tflops_per_rank"], "TFLOP/s")
    peak = next((peak for part, peak in PEAKS.items() if part in name), None)
    if peak is not None:
        share = speeds["tflops_per_rank"] / peak
        yield Figure.at_least(f"model FLOPs utilisation, peak {peak:g} TFLOP/s", share, "share", 0.45)
    if on_gpu:
        yield Figure("peak memory of a GPU", steps[-1]["peak_memory_gib"], "GiB")


def write_qwen2(folder: Path) -> None:
    """Random weights in the shape of Qwen2-1.5B; tokens are drawn from the first ids of its vocabulary."""
    config = Qwen2Config(
        vocab_size=151_936,
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        max_position_embeddings=CAP,
        tie_word_embeddings=True,
    )
    assert config.vocab_size > VOCABULARY
    with torch.device("cuda"):
        model = Qwen2ForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder)


if __name__ == "__main__":
    main(measure)
