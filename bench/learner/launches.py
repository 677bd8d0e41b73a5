"""How many kernels an update of 8 packs would launch on one GPU, counted by torch's profiler on the CPU.

An operator counts once, whatever it calls (a GPU converts inside its kernel; fused and ``foreach`` operators are one);
views and allocations do not count. What only the CPU does (attention's moves, a norm's backward in parts) is counted.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.profiler import ProfilerActivity, profile
from transformers import Qwen2Config, Qwen2ForCausalLM

from bench.harness import Figure, main
from verl.data.samples import TrainingSample
from verl.learner.config import LearnerConfig
from verl.learner.distributed import init_process
from verl.learner.learner import Learner
from verl.learner.phase import Phase

PACKS, LAYERS, TOKENS = 8, 6, 60
_VIEWS = (
    "view reshape as_strided transpose t expand slice select detach detach_ empty unbind permute squeeze unsqueeze "
    "alias _unsafe_view resize_ empty_strided chunk split split_with_sizes empty_like narrow result_type item "
    "_local_scalar_dense is_nonzero view_as lift_fresh _reshape_alias set_ expand_as new_empty unflatten flatten "
    "new_empty_strided resolve_conj resolve_neg size"
)
_CALLS_OTHERS = (
    "linear matmul contiguous to _to_copy clone zeros zeros_like ones ones_like full full_like select_backward "
    "slice_backward scaled_dot_product_attention type_as float stack repeat_interleave new_zeros new_full new_ones "
    "softmax log_softmax embedding embedding_backward square"
)
_NOT_COUNTED = frozenset(f"aten::{name}" for name in f"{_VIEWS} {_CALLS_OTHERS}".split())


def launches(events: Any) -> int:
    """Kernels in the profiler's events."""
    return sum(_is_kernel(event) and not any(map(_is_kernel, _callers(event))) for event in events)


def _is_kernel(event: Any) -> bool:
    return event.name.startswith(("aten::", "c10d::", "fsdp::")) and event.name not in _NOT_COUNTED


def _callers(event: Any) -> Iterator[Any]:
    while (event := event.cpu_parent) is not None:
        yield event


def measure(quick: bool) -> Iterator[Figure]:
    """One update after a first one that makes the optimizer's state."""
    init_process(0, 1, "127.0.0.1", 0)
    shape = Qwen2Config(
        vocab_size=2000,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    rng = np.random.default_rng(0)
    samples = [_sample(rng) for _ in range(2 * PACKS)]
    with tempfile.TemporaryDirectory() as folder:
        Qwen2ForCausalLM(shape).save_pretrained(folder)
        config = LearnerConfig(compute_dtype="bfloat16", max_tokens_per_microbatch=2 * TOKENS)
        learner = Learner(folder, config, seed=0)
    learner.begin_phase(Phase(batches=2))
    learner.update(samples)
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        learner.update(samples)
    count = launches(recorded.events())
    yield Figure.at_most(f"launches of an update of {PACKS} packs, {LAYERS} layers", count, "kernels", 5_242)


def _sample(rng: np.random.Generator) -> TrainingSample:
    mask = rng.random(TOKENS) < 0.5
    mask[0], mask[-1] = False, True
    ones = np.where(mask, 1, 0).astype(np.float32)
    return TrainingSample(rng.integers(0, 2000, TOKENS).astype(np.int32), mask, ones, -ones)


if __name__ == "__main__":
    main(measure)
