"""An adapter and its base as one model: the same logits, all or nothing on disk, plain words for what is no adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from preprocess.embedded.tiny_model import train_tokenizer, write_model
from verl.config.arguments import parse
from verl.errors import UserError
from verl.learner.merge import Config, main, merge


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    write_model(folder, len(train_tokenizer(["who wrote it ? mara did"], folder)), 1)
    return folder


def adapter(base: Path, folder: Path, rank: int, **more: Any) -> Path:
    """An adapter of every linear layer, away from its start, where it would add nothing."""
    torch.manual_seed(rank)
    config = LoraConfig(r=rank, lora_alpha=128, target_modules="all-linear", init_lora_weights=False, **more)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("rank", "more"), [(64, {}), (128, {"use_rslora": True})])
def test_a_merged_model_says_what_the_adapter_said(base: Path, tmp_path: Path, rank: int, more: dict[str, Any]) -> None:
    trained = adapter(base, tmp_path / "adapter", rank, **more)
    assert main([f"adapter={trained}", f"out={tmp_path / 'merged'}"]) == 0
    ids = torch.tensor([[3, 9, 5, 11, 4]])
    with torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(base)
        before = plain(ids).logits
        with_adapter = PeftModel.from_pretrained(plain, str(trained))(ids).logits
        after = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(ids).logits
    torch.testing.assert_close(after, with_adapter, atol=1e-4, rtol=1e-4)
    assert (after - before).abs().max() > 0.1
    assert AutoTokenizer.from_pretrained(tmp_path / "merged")("mara")["input_ids"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "merged"]


def test_what_is_no_adapter_is_told_and_nothing_is_left(base: Path, tmp_path: Path) -> None:
    def refused(*words: str) -> str:
        with pytest.raises(UserError) as error:
            merge(parse(Config, [*words, f"out={tmp_path / 'out'}"]))
        return str(error.value)

    trained = adapter(base, tmp_path / "adapter", 4)
    assert "has no adapter_config.json and adapter_model.safetensors" in refused(f"adapter={base}")
    (tmp_path / "run" / "best_dev").mkdir(parents=True)
    assert "merged weights: take" in refused(f"adapter={tmp_path / 'run'}")
    assert f"base={tmp_path / 'none'}: cannot be loaded" in refused(f"adapter={trained}", f"base={tmp_path / 'none'}")
    other = tmp_path / "other"
    write_model(other, len(train_tokenizer(["a b"], other)), 1, hidden_size=64)
    assert f"does not fit base={other}" in refused(f"adapter={trained}", f"base={other}")
    (trained / "adapter_config.json").write_text("{}")
    assert "names no base" in refused(f"adapter={trained}")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob("out*"))


def test_a_folder_that_is_there_is_left_alone(base: Path, tmp_path: Path) -> None:
    trained = adapter(base, tmp_path / "adapter", 4)
    with pytest.raises(UserError, match="is there already"):
        merge(Config(str(trained), str(tmp_path)))
