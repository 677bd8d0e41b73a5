"""vLLM reads the pictures that a prompt shows: its log-probs are those of the learner's model, picture for picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from tests.verl.tiny_vl import write_picture, write_tiny_vl
from verl.data.pictures import Pictures
from verl.errors import UserError
from verl.rollout.engine import VllmEngine
from verl.rollout.engine_config import EngineConfig
from verl.rollout.interfaces import Sampling, Turn

pytest.importorskip("torchvision", reason="vLLM needs it for pictures")
pytestmark = pytest.mark.engine
GREEDY = Sampling(temperature=0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vl")
    write_tiny_vl(folder)
    return folder


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[VllmEngine]:
    made = VllmEngine(folder, EngineConfig(max_context_tokens=512, kv_cache_gib=0.1, dtype="float32"), seed=0)
    yield made
    made._thread.close()


async def test_log_probs_are_the_models_for_what_each_prompt_shows(
    engine: VllmEngine, folder: Path, tmp_path: Path
) -> None:
    pictures = Pictures.of(folder)
    assert pictures is not None
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder)
    said = []
    for colour in ("red", "blue"):
        shown = (write_picture(tmp_path / f"{colour}.png", colour, (224, 336)),)  # no need to scale: scalers differ
        ids = [1, *pictures.ids(shown), 20, 21]
        generation = await engine.generate(ids, Turn(8, images=shown), GREEDY, seed=0)
        whole = torch.tensor([[*ids, *generation.token_ids]])
        pixels, grid = pictures.pixels(shown)
        with torch.no_grad():
            logits = model(
                whole, pixel_values=pixels, image_grid_thw=grid, mm_token_type_ids=(whole == pictures.pad).int()
            ).logits[0]
        theirs = logits.log_softmax(-1)[:-1].gather(1, whole[0, 1:, None])[len(ids) - 1 :, 0]
        assert np.abs(np.asarray(generation.logprobs) - theirs.numpy()).max() < 1e-4
        said.append(np.asarray(generation.logprobs))
    assert np.abs(said[0] - said[1]).max() > 1e-2, "it must see the colour"


async def test_text_alone_is_read_too_and_a_picture_that_cannot_be_is_told(engine: VllmEngine, tmp_path: Path) -> None:
    assert (await engine.generate([1, 20, 21], Turn(3), GREEDY, seed=0)).token_ids
    (tmp_path / "no.png").write_text("secret")
    with pytest.raises(UserError, match=r"no\.png: is no picture that can be read"):
        await engine.generate([1, 5, 20], Turn(3, images=(str(tmp_path / "no.png"),)), GREEDY, seed=0)
