"""Other model families score as their own Hugging Face forward does; those that cannot be scored are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, PreTrainedConfig, Qwen3Config

from verl.data.samples import TrainingSample
from verl.errors import UserError
from verl.learner.config import LearnerConfig
from verl.learner.learner import Learner

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
}


@pytest.mark.parametrize(
    "config",
    [LlamaConfig(**SIZES), Qwen3Config(**SIZES, head_dim=16), MistralConfig(**SIZES, sliding_window=64)],
    ids=lambda config: config.model_type,
)
def test_logprobs_equal_the_family_own_forward(
    config: PreTrainedConfig, make_samples: Callable[..., list[TrainingSample]], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(tmp_path)
    samples = make_samples(3)
    for sample, ours in zip(samples, Learner(tmp_path, LearnerConfig(), seed=0).logprobs(samples), strict=True):
        ids = torch.as_tensor(sample.token_ids, dtype=torch.int64)
        with torch.no_grad():
            logp = torch.log_softmax(model(ids[None]).logits[0], dim=-1)
        expected = np.zeros(len(ids), dtype=np.float32)
        expected[1:] = logp[:-1].gather(1, ids[1:, None]).squeeze(1)
        np.testing.assert_allclose(ours, expected * sample.policy_mask, atol=1e-5)


def test_a_model_that_changes_its_logits_is_refused(model_folder: Path, tmp_path: Path) -> None:
    config = json.loads((model_folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "final_logit_softcapping": 30.0}))
    with pytest.raises(UserError, match="final_logit_softcapping"):
        Learner(tmp_path, LearnerConfig(), seed=0)
