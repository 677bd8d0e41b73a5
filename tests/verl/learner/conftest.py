"""A tiny model, random samples, and a process group of one rank for the tests of the learner."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from transformers import Qwen2Config, Qwen2ForCausalLM

from verl.data.samples import TrainingSample
from verl.learner.distributed import init_process

VOCABULARY = 61


@pytest.fixture(scope="session", autouse=True)
def one_rank() -> Iterator[None]:
    torch.set_num_threads(1)
    init_process(0, 1, "127.0.0.1", 0)
    yield
    if dist.is_initialized():  # a vLLM engine that a later test had in this process has ended it already
        dist.destroy_process_group()


def tiny_qwen2(*, tied: bool) -> Qwen2ForCausalLM:
    torch.manual_seed(5)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        initializer_range=0.2,  # logits of some size, or every test would pass on a uniform distribution
    )
    return Qwen2ForCausalLM(config)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tied")
    tiny_qwen2(tied=True).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def untied_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("untied")
    tiny_qwen2(tied=False).save_pretrained(folder)
    return folder


def random_sample(rng: np.random.Generator, length: int) -> TrainingSample:
    mask = rng.random(length) < 0.5
    mask[0], mask[-1] = False, True
    return TrainingSample(
        token_ids=rng.integers(0, VOCABULARY, length).astype(np.int32),
        policy_mask=mask,
        advantages=np.where(mask, rng.normal(), 0).astype(np.float32),
        rollout_logprobs=np.where(mask, -rng.random(length) * 5, 0).astype(np.float32),
    )


@pytest.fixture
def make_samples() -> Callable[..., list[TrainingSample]]:
    def make(count: int, seed: int = 0, longest: int = 40) -> list[TrainingSample]:
        rng = np.random.default_rng(seed)
        return [random_sample(rng, int(length)) for length in rng.integers(2, longest, count)]

    return make
