"""Batches and a model for the learner's benches: searching episodes have long tails."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from verl.data.samples import TrainingSample

VOCABULARY = 4096
POLICY_SHARE = 0.35


def lognormal_lengths(count: int, seed: int) -> list[int]:
    """Token counts: log-normal, median 1,200, sigma 0.6, clipped at 4,096."""
    draws = np.random.default_rng(seed).lognormal(np.log(1200), 0.6, count)
    return [int(length) for length in np.clip(draws, 16, 4096)]


def sample_of(length: int, rng: np.random.Generator) -> TrainingSample:
    """Random tokens, of which about a third are the policy's."""
    mask = rng.random(length) < POLICY_SHARE
    mask[0] = False
    return TrainingSample(
        token_ids=rng.integers(0, VOCABULARY, length).astype(np.int32),
        policy_mask=mask,
        advantages=np.where(mask, rng.normal(), 0).astype(np.float32),
        rollout_logprobs=np.where(mask, -1, 0).astype(np.float32),
    )


def small_qwen2(layers: int, width: int) -> Qwen2ForCausalLM:
    """Random weights."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=max(1, width // 128),
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )
    return Qwen2ForCausalLM(config)


def write_model(folder: Path, layers: int = 2, width: int = 256) -> Path:
    """Save it as a Hugging Face folder."""
    small_qwen2(layers, width).save_pretrained(folder)
    return folder
