"""The plan against the most that a learner takes while it trains, by torch's own account of its allocations."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import Qwen2Config, Qwen2ForCausalLM

from verl.data.batch import pack_samples
from verl.data.samples import TrainingSample
from verl.learner.config import LearnerConfig, LoraConfig
from verl.learner.holdings import BYTES, holdings, logits_bytes
from verl.learner.learner import Learner
from verl.learner.logprobs import policy_logprobs
from verl.learner.memory import counts_of, kept_bytes, layer_bytes, working_bytes
from verl.learner.parts import decoder_of
from verl.learner.phase import Phase
from verl.model_shape import ModelShape, read_shape

CAP, SEQUENCE, MIB = 384, 128, 4
SHAPES = {
    "as Qwen2's, scaled": ModelShape(128, 4, 4, 2, 704, 1500, True, head_dim=32),
    "wide, untied": ModelShape(256, 2, 4, 2, 704, 500, False, head_dim=64),
    "a large vocabulary": ModelShape(64, 3, 4, 4, 192, 12000, True, head_dim=16),
}
FULL = LearnerConfig(max_tokens_per_microbatch=CAP, max_logits_mib=MIB, gradient_checkpointing=False)


def taken(call: Callable[[], object]) -> tuple[int, int]:
    """Bytes above what stood before: at most, and when ``call`` is done."""
    gc.collect()  # what earlier tests left, so that it is not freed meanwhile
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        result = call()
    events: Any = recorded.profiler
    changes = [(e.start_ns(), e.nbytes()) for e in events.kineto_results.events() if e.name() == "[memory]"]
    totals = np.cumsum([size for _, size in sorted(changes, key=lambda change: change[0])])
    del result
    return int(totals.max()), int(totals[-1])


@pytest.fixture(scope="module", params=SHAPES, ids=[name.replace(" ", "-") for name in SHAPES])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write(SHAPES[request.param], folder)
    return folder


def write(shape: ModelShape, folder: Path) -> None:
    torch.manual_seed(0)
    Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=shape.vocabulary,
            hidden_size=shape.hidden,
            intermediate_size=shape.ffn,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            tie_word_embeddings=shape.tied,
        )
    ).save_pretrained(folder)


def packs(count: int, vocabulary: int) -> list[TrainingSample]:
    """Full ones, nearly all of whose tokens are the policy's."""
    rng = np.random.default_rng(0)
    mask = np.arange(SEQUENCE) > 2
    ones = np.where(mask, 1, 0).astype(np.float32)
    ids = rng.integers(0, vocabulary, (count * CAP // SEQUENCE, SEQUENCE)).astype(np.int32)
    return [TrainingSample(row, mask, ones, -ones) for row in ids]


def started(model: Path, config: LearnerConfig) -> tuple[Learner, ModelShape]:
    learner, shape = Learner(model, config, seed=0), read_shape(str(model))
    learner.begin_phase(Phase(batches=3))
    learner.update(packs(2, shape.vocabulary))
    return learner, shape


RECOMPUTED = {"kept": False, "the first": 1, "all but the last": -1, "recomputed": True}


def recomputing(config: LearnerConfig, name: str, model: Path) -> LearnerConfig:
    number = RECOMPUTED[name]
    return replace(config, gradient_checkpointing=number if number >= 0 else read_shape(str(model)).layers + number)


@pytest.mark.parametrize("recomputed", RECOMPUTED)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_plan_says_the_most_that_an_update_takes(model: Path, dtype: Any, recomputed: str) -> None:
    config = recomputing(replace(FULL, compute_dtype=dtype), recomputed, model)
    learner, shape = started(model, config)
    most, _ = taken(lambda: learner.update(packs(2, shape.vocabulary)))
    parts = holdings(config, learner.phase, counts_of(config, shape), 1).values()
    held = sum(part.held for part in parts)
    planned = sum(part.computing for part in parts) + sum(working_bytes(config, shape, on_gpu=False).values())
    assert held + planned == pytest.approx(held + most, rel=0.1)


def test_the_last_layers_recomputed_instead_would_take_a_layer_more(tmp_path: Path) -> None:
    shape = ModelShape(128, 6, 4, 2, 704, 300, True, head_dim=32)
    write(shape, tmp_path)
    config = replace(FULL, gradient_checkpointing=3)

    def most(first: bool) -> int:
        learner, _ = started(tmp_path, config)
        for place, layer in enumerate(decoder_of(learner.model.lm).layers):
            layer.gradient_checkpointing = (place < 3) == first
        return taken(lambda: learner.update(packs(2, shape.vocabulary)))[0]

    assert most(False) - most(True) == pytest.approx(layer_bytes(config, shape)[0], rel=0.1)


@pytest.mark.parametrize("recomputed", RECOMPUTED)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_plan_says_what_the_layers_keep_for_the_backward_pass(model: Path, dtype: Any, recomputed: str) -> None:
    config = recomputing(replace(FULL, compute_dtype=dtype, max_logits_mib=1), recomputed, model)
    learner, shape = started(model, config)  # with logits in several chunks, of which none is kept
    batch = pack_samples(packs(1, shape.vocabulary), "cpu", {})
    kept: list[object] = []
    _, left = taken(lambda: kept.append(learner.model(batch, 1.0, False)))
    gathered = holdings(config, learner.phase, counts_of(config, shape), 1)["gathered layers"].computing
    rest = 5 * CAP * shape.hidden * BYTES[dtype]  # of the last norm, and the states that were picked
    assert kept_bytes(config, shape)[0] == pytest.approx(left - gathered, rel=0.1, abs=rest)


@pytest.mark.parametrize("mib", [1, 8, 1000])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_plan_says_what_the_head_takes(dtype: Any, mib: int) -> None:
    config = replace(FULL, compute_dtype=dtype, max_logits_mib=mib)
    weight = torch.randn(6000, 32).to(getattr(torch, dtype))
    hidden = torch.randn(CAP, 32).to(weight.dtype).requires_grad_()
    targets = torch.zeros(CAP, dtype=torch.int64)
    most, _ = taken(
        lambda: policy_logprobs(hidden, weight, targets, max_logits_mib=mib, full=False)[0].sum().backward()
    )
    assert logits_bytes(config, 6000, on_gpu=False) == pytest.approx(most, rel=0.1)


def test_frozen_weights_have_no_gradients_on_their_way() -> None:
    shape = SHAPES["wide, untied"]
    assert working_bytes(FULL, shape, on_gpu=True)["gradients on their way"]
    assert not working_bytes(replace(FULL, lora=LoraConfig()), shape, on_gpu=True)["gradients on their way"]
