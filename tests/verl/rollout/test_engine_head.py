"""In bfloat16 rollout and learner agree better where neither rounds its logits; weights that are pushed are met too."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from verl.data.samples import TrainingSample
from verl.learner.config import LearnerConfig
from verl.learner.distributed import init_process
from verl.learner.learner import Learner
from verl.rollout.engine import EngineConfig, VllmEngine
from verl.rollout.interfaces import Generation, Sampling, Turn
from verl.sync.file import publish

pytestmark = pytest.mark.engine
TOKENS = 60


@pytest.fixture(scope="module")
def sure_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with smaller layers: as sure of its next token as a trained one, its logits about 20."""
    from transformers import AutoTokenizer, Qwen2ForCausalLM

    folder = tmp_path_factory.mktemp("sure")
    model = Qwen2ForCausalLM.from_pretrained(tiny_model)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("proj.weight"):
                weight.mul_(0.3)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


def played(begun_with: Path, pushed: Path, head: Any, folder: Path) -> list[TrainingSample]:
    """Episodes of an engine that began with other weights and then was given these."""
    from transformers import Qwen2ForCausalLM

    config = EngineConfig(
        dtype="bfloat16", head_dtype=head, max_context_tokens=128, max_tokens_per_step=512, kv_cache_gib=0.125
    )
    engine = VllmEngine(begun_with, config, seed=0)
    prompts = np.random.default_rng(0).integers(2, 250, (32, 30)).tolist()

    async def play() -> list[Generation]:
        weights = Qwen2ForCausalLM.from_pretrained(pushed, dtype=torch.bfloat16).named_parameters()
        await engine.update_weights(publish(weights, 1, folder), 1)
        calls = (engine.generate(prompt, Turn(TOKENS), Sampling(), seed) for seed, prompt in enumerate(prompts))
        return await asyncio.gather(*calls)

    try:
        generations = asyncio.run(asyncio.wait_for(play(), 200))
    finally:
        asyncio.run(engine.close())
    return [_sample(prompt, answer) for prompt, answer in zip(prompts, generations, strict=True)]


def _sample(prompt: list[int], answer: Generation) -> TrainingSample:
    ids = np.asarray([*prompt, *answer.token_ids], dtype=np.int32)
    logprobs = np.asarray([*[0] * len(prompt), *answer.logprobs], dtype=np.float32)
    return TrainingSample(ids, np.arange(len(ids)) >= len(prompt), np.zeros(len(ids), dtype=np.float32), logprobs)


def gap(model: Path, head: Any, samples: list[TrainingSample]) -> float:
    """Mean |log-prob difference| between the engine and a learner in bfloat16, in nats."""
    if not dist.is_initialized():  # an engine ends that of its process
        init_process(0, 1, "127.0.0.1", 0)
    learner = Learner(model, LearnerConfig(compute_dtype="bfloat16", head_dtype=head), seed=0)
    scores = learner.logprobs(samples)
    differences = [abs(row - s.rollout_logprobs)[s.policy_mask] for row, s in zip(scores, samples, strict=True)]
    return float(np.concatenate(differences).mean())


def test_two_heads_that_give_float32_agree_better_than_two_that_round(
    tiny_model: Path, sure_model: Path, tmp_path: Path
) -> None:
    heads = ("float32", "model")
    gaps = {head: gap(sure_model, head, played(tiny_model, sure_model, head, tmp_path)) for head in heads}
    assert gaps["float32"] < 1e-3  # 3.2e-4 seen; 5.2e-4 where both round
    assert gaps["float32"] < 0.8 * gaps["model"]
