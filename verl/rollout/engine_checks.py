"""Mistakes in a model folder or in the engine's limits, found from JSON files before an engine is built.

vLLM would find most of them too, after seconds of loading and in a traceback; each is one line here.
"""

from __future__ import annotations

import json
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from verl.data.pictures import KIND
from verl.errors import UserError
from verl.rollout.engine_config import EngineConfig

_GIB = 1 << 30
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# From vLLM 0.32, vllm/v1/attention/backends/cpu_attn.py.
_CPU_HEAD_SIZES = frozenset({32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512})
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
_WEIGHT_PATTERNS = ("*.safetensors", "*.bin")


def check_model(folder: Path, config: EngineConfig, *, on_cpu: bool) -> None:
    """Raise UserError if the engine could not serve the model in ``folder`` under ``config``."""
    description = _read_description(folder)
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise UserError(
            f"model {folder} has no tokenizer: put tokenizer.json beside config.json (save_pretrained writes it)"
        )
    if not any(file for pattern in _WEIGHT_PATTERNS for file in folder.glob(pattern)):
        raise UserError(f"model {folder} has no weights (*.safetensors): was the download or the export cut short?")
    if description.get("model_type") == KIND and find_spec("torchvision") is None:
        raise UserError(f"model {folder} reads pictures, and vLLM needs torchvision for that: install it")
    check_context(description, config, folder)
    check_parallel(description, config, folder)
    if on_cpu:
        check_cpu(description, config, folder)


def check_architecture(folder: Path, supported: frozenset[str]) -> None:
    """Raise UserError if none of the model's architectures is in ``supported`` (what vLLM's registry knows)."""
    names = _read_description(folder).get("architectures") or []
    if not supported.intersection(names):
        raise UserError(
            f"model {folder} is of architecture {', '.join(names) or '(none named)'}, which this vLLM does not "
            "serve: choose another model"
        )


def check_context(description: dict[str, Any], config: EngineConfig, folder: Path) -> None:
    """Raise UserError if the context asked for exceeds the positions that the model was made for."""
    positions = description.get("max_position_embeddings")
    if isinstance(positions, int) and config.max_context_tokens > positions:
        raise UserError(
            f"max_context_tokens={config.max_context_tokens} is above what model {folder} was made for "
            f"(max_position_embeddings={positions}): write {positions} or less"
        )


def check_parallel(description: dict[str, Any], config: EngineConfig, folder: Path) -> None:
    """Raise UserError if the attention heads cannot be divided among the ranks."""
    heads = description.get("num_attention_heads")
    if isinstance(heads, int) and heads % config.tensor_parallel_size:
        raise UserError(
            f"tensor_parallel_size={config.tensor_parallel_size} does not divide the {heads} attention heads of "
            f"model {folder}: write a divisor"
        )


def check_cpu(description: dict[str, Any], config: EngineConfig, folder: Path) -> None:
    """Raise UserError on what vLLM's CPU kernel lacks, or on too little memory for a single request."""
    size = head_size(description)
    if size and size not in _CPU_HEAD_SIZES:
        raise UserError(
            f"model {folder} has attention heads of size {size}, vLLM on CPU serves {sorted(_CPU_HEAD_SIZES)}: "
            "change hidden_size or num_attention_heads"
        )
    needed = kv_bytes_per_token(description, config) * config.max_context_tokens
    if needed > config.kv_cache_gib * _GIB:
        raise UserError(
            f"kv_cache_gib={config.kv_cache_gib} cannot hold one request of {config.max_context_tokens} tokens "
            f"of model {folder}: write kv_cache_gib={math.ceil(100 * needed / _GIB) / 100} or more, "
            "or lower max_context_tokens"
        )


def head_size(description: dict[str, Any]) -> int:
    """Numbers in one attention head; 0 where the description does not say."""
    heads, hidden = description.get("num_attention_heads"), description.get("hidden_size")
    if isinstance(explicit := description.get("head_dim"), int):
        return explicit
    return hidden // heads if isinstance(heads, int) and isinstance(hidden, int) else 0


def kv_bytes_per_token(description: dict[str, Any], config: EngineConfig) -> int:
    """Keys and values of one token on one rank, in bytes; 0 where the description does not say (vLLM checks then)."""
    layers = description.get("num_hidden_layers")
    kv_heads = description.get("num_key_value_heads") or description.get("num_attention_heads")
    if not (isinstance(layers, int) and isinstance(kv_heads, int)):
        return 0
    kv_heads_per_rank = max(1, kv_heads // config.tensor_parallel_size)
    return 2 * layers * kv_heads_per_rank * head_size(description) * _BYTES[config.dtype]


def _read_description(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    try:
        description = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"model {folder} has no config.json: give a folder in Hugging Face format") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read as JSON ({error}): export or download the model again") from error
    if not isinstance(description, dict):
        raise UserError(f"{file} is not a JSON object: export or download the model again")
    return {
        **(description.get("text_config") or {}),
        **description,
    }  # where pictures are read, how text is
