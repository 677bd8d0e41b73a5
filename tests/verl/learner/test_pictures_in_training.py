"""A model that reads pictures in the learner: its log-probs are transformers' own, and it learns what it sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

from tests.verl.tiny_vl import write_picture, write_tiny_vl
from verl.algorithms.config import LossConfig
from verl.data.pictures import Pictures
from verl.data.samples import TrainingSample
from verl.errors import UserError
from verl.learner.config import LearnerConfig, LoraConfig, OptimizerConfig
from verl.learner.learner import Learner
from verl.learner.phase import Phase
from verl.model_shape import read_shape


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vl")


@pytest.fixture(scope="module")
def pictures(folder: Path) -> Pictures:
    return write_tiny_vl(folder)


def sample(folder: Path, pictures: Pictures, shown: tuple[str, ...], said: str) -> TrainingSample:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = [1, *pictures.ids(shown), *tokenizer("what colour is it ?")["input_ids"]]
    answer = tokenizer(said)["input_ids"]
    ids = np.array([*prompt, *answer], np.int32)
    mask = np.arange(len(ids)) >= len(prompt)
    return TrainingSample(ids, mask, mask.astype(np.float32), np.zeros(len(ids), np.float32), shown)


@pytest.fixture
def samples(folder: Path, pictures: Pictures, tmp_path: Path) -> list[TrainingSample]:
    red, blue = (write_picture(tmp_path / f"{colour}.png", colour) for colour in ("red", "blue"))
    tall = write_picture(tmp_path / "tall.png", "blue", (60, 300))
    return [
        sample(folder, pictures, (red,), "red"),
        sample(folder, pictures, (), "blue"),
        sample(folder, pictures, (tall, red), "A"),
        sample(folder, pictures, (blue,), "blue"),
    ]


@pytest.fixture(params=[None, LoraConfig(rank=4)], ids=["all", "lora"])
def learner(request: pytest.FixtureRequest, folder: Path, pictures: Pictures) -> Learner:
    return Learner(folder, LearnerConfig(lora=request.param), seed=0)


def theirs(folder: Path, pictures: Pictures, one: TrainingSample) -> torch.Tensor:
    """Log-probs of the policy tokens by transformers' own forward."""
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder)
    ids = torch.as_tensor(one.token_ids, dtype=torch.int64)[None]
    names = ("pixel_values", "image_grid_thw")
    extra = dict(zip(names, pictures.pixels(one.images), strict=True)) if one.images else {}
    with torch.no_grad():
        logits = model(ids, mm_token_type_ids=(ids == pictures.pad).int(), **extra).logits[0]
    chosen = logits.log_softmax(-1)[:-1].gather(1, ids[0, 1:, None])[:, 0]
    return chosen[torch.as_tensor(one.policy_mask[1:])]


def test_packed_sequences_with_pictures_have_the_log_probs_of_each_alone(
    learner: Learner, folder: Path, pictures: Pictures, samples: list[TrainingSample]
) -> None:
    for one, ours in zip(samples, learner.logprobs(samples), strict=True):
        expected = theirs(folder, pictures, one)
        torch.testing.assert_close(torch.as_tensor(ours[one.policy_mask]), expected, atol=2e-5, rtol=0)


def test_it_learns_the_colour_it_sees_and_its_sight_stays(
    learner: Learner, folder: Path, pictures: Pictures, samples: list[TrainingSample], tmp_path: Path
) -> None:
    learner.begin_phase(Phase(OptimizerConfig(learning_rate=5e-3), LossConfig(name="weighted_nll"), 30))
    seen = [samples[0], samples[3]]
    before = dict(learner.named_weights())["visual.blocks.0.attn.qkv.weight"].clone()
    losses = [learner.update(seen)["loss"] for _ in range(30)]
    assert losses[-1] < 0.05 < losses[0], "one question, two answers: only the picture tells them apart"
    assert torch.equal(dict(learner.named_weights())["visual.blocks.0.attn.qkv.weight"], before)

    learner.save_hf(tmp_path / "out", torch.float32)
    assert Pictures.of(tmp_path / "out") is not None
    for one, ours in zip(seen, learner.logprobs(seen), strict=True):
        again = theirs(tmp_path / "out", pictures, one)
        torch.testing.assert_close(torch.as_tensor(ours[one.policy_mask]), again, atol=2e-4, rtol=0)


def test_a_plan_counts_all_of_its_parameters(folder: Path, pictures: Pictures) -> None:
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder)
    shape = read_shape(str(folder))
    assert shape.parameters == sum(weight.numel() for weight in model.parameters())
    assert shape.beside == sum(weight.numel() for weight in model.model.visual.parameters())
    assert read_shape("Qwen/Qwen2.5-VL-7B-Instruct").parameters == 8_292_166_656


def test_a_picture_that_was_replaced_is_told(
    folder: Path, pictures: Pictures, samples: list[TrainingSample], tmp_path: Path
) -> None:
    write_picture(Path(samples[0].images[0]), "red", (600, 60))
    with pytest.raises(UserError, match="tokens stand for pictures of"):
        Learner(folder, LearnerConfig(), seed=0).logprobs(samples[:1])
