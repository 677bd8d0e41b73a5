"""The sizes of a causal language model that a plan needs, from its ``config.json`` or, for known hub names, from here.

A plan must be possible on a machine that can reach no hub, so the published sizes of the models that the recipes use
are written down (their ``config.json`` on the hub says the same).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from verl.errors import UserError


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A decoder with gated MLP and grouped-query attention."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    vocabulary: int
    tied: bool
    max_positions: int = 32768
    head_dim: int | None = None
    """Width of one attention head; None where the heads share the hidden width."""
    beside: int = 0
    """Parameters of what is not the decoder: of what sees pictures, never trained."""

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.head_dim or self.hidden // self.heads

    @property
    def layer_parameters(self) -> int:
        """Parameters of one layer: attention with biases on q, k and v (Qwen2), gated MLP, two norms."""
        width, kv = self.heads * self.head_size, self.kv_heads * self.head_size
        attention = 2 * self.hidden * width + 2 * self.hidden * kv + width + 2 * kv
        return attention + 3 * self.hidden * self.ffn + 2 * self.hidden

    @property
    def parameters(self) -> int:
        """All parameters."""
        embeddings = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return embeddings + self.layers * self.layer_parameters + self.hidden + self.beside

    def kv_bytes_per_token(self, bytes_per_value: int) -> int:
        """Keys and values of one token in all layers."""
        return 2 * self.layers * self.kv_heads * self.head_size * bytes_per_value


_QWEN25 = {
    "0.5B": ModelShape(896, 24, 14, 2, 4864, 151936, True),
    "1.5B": ModelShape(1536, 28, 12, 2, 8960, 151936, True),
    "3B": ModelShape(2048, 36, 16, 2, 11008, 151936, True),
    "7B": ModelShape(3584, 28, 28, 4, 18944, 152064, False),
    "14B": ModelShape(5120, 48, 40, 8, 13824, 152064, False),
    "32B": ModelShape(5120, 64, 40, 8, 27648, 152064, False),
    "72B": ModelShape(8192, 80, 64, 8, 29568, 152064, False),
}
_LLAMA = ModelShape(4096, 32, 32, 8, 14336, 128256, False, 131072)
_MISTRAL = ModelShape(5120, 40, 32, 8, 32768, 131072, False, 32768, head_dim=128)
_KNOWN = {
    **{
        f"Qwen/Qwen2.5-{kind}{size}{suffix}": shape
        for kind in ("", "Coder-")
        for size, shape in _QWEN25.items()
        for suffix in ("", "-Instruct")
    },
    "Qwen/Qwen2.5-VL-7B-Instruct": replace(_QWEN25["7B"], max_positions=128000, beside=676_550_144),
    "meta-llama/Llama-3.1-8B": _LLAMA,
    "meta-llama/Llama-3.1-8B-Instruct": _LLAMA,
    "mistralai/Mistral-7B-Instruct-v0.3": ModelShape(4096, 32, 32, 8, 14336, 32768, False),
    "mistralai/Mistral-Small-24B-Base-2501": _MISTRAL,
    "mistralai/Mistral-Small-24B-Instruct-2501": _MISTRAL,
}


# The tiny model of the embedded world, which may not have been made yet.
EMBEDDED = ModelShape(128, 3, 4, 2, 256, 1200, True, max_positions=1024)


def read_shape(model: str) -> ModelShape:
    """The shape of a local model folder, or of a known hub name. Raises UserError for anything else."""
    path = Path(model) / "config.json"
    if path.exists():
        return _from_config(path)
    if is_known(model):
        return _KNOWN[model]
    raise UserError(
        f"model={model}: no such folder with a config.json, and its size is not known here; download it first"
    )


def is_known(model: str) -> bool:
    """Whether this is a hub name whose shape is written down here."""
    return model in _KNOWN


def _from_config(path: Path) -> ModelShape:
    config = json.loads(path.read_text())
    sight = config.get("vision_config")
    config = {**(config.get("text_config") or {}), **config}
    try:
        return ModelShape(
            hidden=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            kv_heads=config.get("num_key_value_heads", config["num_attention_heads"]),
            ffn=config["intermediate_size"],
            vocabulary=config["vocab_size"],
            tied=config.get("tie_word_embeddings", False),
            max_positions=config.get("max_position_embeddings", 32768),
            head_dim=config.get("head_dim"),
            beside=_sight(sight) if sight else 0,
        )
    except KeyError as error:
        raise UserError(f"{path} has no {error}: it is not a causal language model of a supported kind") from error


def _sight(config: dict[str, Any]) -> int:
    """Parameters of Qwen2.5-VL's vision transformer: blocks, patches, and the layers that lead to the decoder."""
    width, ffn, out = config["hidden_size"], config["intermediate_size"], config["out_hidden_size"]
    block = 4 * width * (width + 1) + 3 * width * ffn + 2 * ffn + 3 * width
    merged = width * config.get("spatial_merge_size", 2) ** 2
    patch: int = 3 * config.get("temporal_patch_size", 2) * config.get("patch_size", 14) ** 2
    return int(config["depth"] * block + patch * width + width + merged * (merged + 1) + (merged + 1) * out)
