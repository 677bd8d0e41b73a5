"""``python -m verl.learner.merge adapter=FOLDER out=FOLDER``: a LoRA adapter of ``peft`` and its base as one model.

For adapters that others trained (LLaMA-Factory, say): runs of this project export merged weights already. The sum is
made on the CPU, in the base's own precision, so that host memory must hold the model once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl.config.arguments import parse, run
from verl.durable import new_folder
from verl.errors import UserError

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class Config:
    """Keys of ``python -m verl.learner.merge``."""

    adapter: str
    """Folder that peft wrote: ``adapter_config.json`` and ``adapter_model.safetensors``."""
    out: str
    """Folder to write; there must be none yet, and it appears when it is whole."""
    base: str = ""
    """The model that the adapter was trained on, a folder or a hub name; empty is the one that the adapter names."""
    shard_gb: float = 2.0
    """The largest file of weights (GB). 2 as published."""

    def __post_init__(self) -> None:
        if self.shard_gb <= 0:
            raise UserError(f"shard_gb={self.shard_gb}: write a number above 0")


def merge(config: Config) -> Path:
    """Write the merged model with its tokenizer. Raises UserError on folders that hold no such thing."""
    adapter, out = Path(config.adapter), Path(config.out)
    base = _checked(adapter, config.base)
    with new_folder(out, "out") as partial:
        _write(base, adapter, partial, f"{config.shard_gb}GB")
    return out


def _write(base: str, adapter: Path, folder: Path, shard: str) -> None:
    """The sum, and the tokenizer: the adapter's own where it has one, for tokens may have been added to it."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    owner = adapter if (adapter / "tokenizer_config.json").is_file() else base
    try:
        tokenizer = AutoTokenizer.from_pretrained(owner)
        model: Any = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    except (OSError, ValueError) as error:
        said = str(error).splitlines()[0]
        raise UserError(f"base={base}: cannot be loaded as a language model ({said}); write base=FOLDER") from error
    try:
        model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload(safe_merge=True)
    except (KeyError, ValueError, RuntimeError) as error:  # sizes and names that differ, or numbers that are none
        said = " ".join(str(error).split())[:200]
        raise UserError(f"adapter={adapter}: does not fit base={base} ({said}); write base= of its own") from error
    model.save_pretrained(folder, max_shard_size=shard)
    tokenizer.save_pretrained(folder)


def _checked(adapter: Path, base: str) -> str:
    """``base``, or that which the adapter names. Raises UserError unless the folder is an adapter, in safetensors."""
    for run_folder in (adapter, *adapter.parents):
        if (run_folder / "best_dev").exists():
            raise UserError(
                f"adapter={adapter}: runs of this project export merged weights: take {run_folder / 'best_dev'}"
            )
    if not (adapter / _CONFIG).is_file() or not (adapter / _WEIGHTS).is_file():
        raise UserError(f"adapter={adapter}: has no {_CONFIG} and {_WEIGHTS}; give a folder that peft wrote")
    if base:
        return base
    try:
        named = json.loads((adapter / _CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError) as error:
        raise UserError(f"{adapter / _CONFIG}: is not a JSON object ({error})") from error
    if not isinstance(named, str) or not named:
        raise UserError(f"{adapter / _CONFIG}: names no base; write base=FOLDER")
    return named


def main(arguments: Sequence[str]) -> int:
    """Merge by ``key=value`` arguments; returns the exit status."""
    print(f"written to {merge(parse(Config, arguments))}")
    return 0


if __name__ == "__main__":
    run(main)
