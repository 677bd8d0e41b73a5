"""Whether the folder that ``model`` names can be served: its kind, its tokenizer, and weights that are whole."""

from __future__ import annotations

import json
import re
from pathlib import Path

from search_agent.config import RunConfig
from verl.errors import UserError, noted
from verl.rollout.engine_checks import check_model

SEES = "Qwen2_5_VLForConditionalGeneration"
"""The one kind of model that reads pictures here (``verl.data.pictures``)."""


def model_faults(config: RunConfig) -> list[str]:
    """Why the folder that ``model`` names cannot be served; nothing is known of a hub name."""
    model = Path(config.model)
    if not model.exists() and re.search(r"[-_]VL\b", model.name) and "Qwen2.5-VL" not in model.name:
        return [f"model={model}: of the models that read pictures, those of Qwen2.5-VL are served and trained here"]
    if not model.exists():
        return [f"model={model}: there is no such folder; give one, or a hub name"] if _is_path(model) else []
    if (model / "best_dev").exists():
        return [f"model={model} is a run folder: write model={model / 'best_dev'} for its best checkpoint"]
    on_cpu = not config.cluster.gpus_per_process
    faults: list[str] = []
    with noted(faults):
        check_model(model, config.rollout.engine, on_cpu=on_cpu)
        check_causal(model)
    for file in sorted(model.glob("*.safetensors")):
        with noted(faults):
            check_whole(file)
    return faults


def _is_path(model: Path) -> bool:
    """Whether a name that is no folder was meant for one: hub names are ``NAME`` or ``OWNER/NAME``."""
    above = model.parts[:-1]
    return len(above) > 1 or any(part in ("~", "..", "/") for part in above) or (bool(above) and model.parent.is_dir())


def check_causal(folder: Path) -> None:
    """Raises UserError unless the folder's ``config.json`` names a causal language model."""
    names = json.loads((folder / "config.json").read_text()).get("architectures") or ["(none named)"]
    if not any(str(name).endswith(("ForCausalLM", "LMHeadModel", SEES)) for name in names):
        raise UserError(
            f"model {folder} is of kind {', '.join(map(str, names))}, not a causal language model: give one whose "
            "config.json names ...ForCausalLM under architectures"
        )


def check_whole(file: Path) -> None:
    """Raises UserError if a safetensors file is shorter than its header says, or has none: a download cut short."""
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length)) if 2 <= length <= size - 8 else {}
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, AttributeError):
        ends = []
    if not ends or size < 8 + length + max(ends):
        raise UserError(f"{file} is damaged or was cut short ({size:,} bytes): export or download it again")
