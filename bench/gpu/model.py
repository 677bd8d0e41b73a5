"""Random weights in the shape of Qwen2-1.5B, and a tokenizer that can spell every id of its vocabulary."""

from __future__ import annotations

import json
import random
import string
from pathlib import Path

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

VOCABULARY = 151_936
MEAN_TURN_TOKENS = 256
POSITIONS = 32_768


def write_weights(folder: Path) -> Path:
    """Needs a card (seconds there, minutes on a CPU)."""
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = Qwen2ForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def write(folder: Path) -> Path:
    """Weights and tokenizer."""
    write_weights(folder)
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path, vocabulary: int = VOCABULARY) -> None:
    """A small one, filled up with words of six letters: random weights draw every id, and each must have a text."""
    from bench.retrieval.world import words
    from preprocess.embedded.tiny_model import train_tokenizer

    inventory = words()[:2000]
    train_tokenizer([" ".join(inventory[first : first + 50]) for first in range(0, 2000, 50)] * 4, folder, 4096)
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    known = tokenizer["model"]["vocab"]
    used = set(known.values()) | {token["id"] for token in tokenizer["added_tokens"]}
    draw = random.Random(0)
    for number in range(vocabulary):
        if number not in used:
            while (word := "".join(draw.choices(string.ascii_lowercase, k=6))) in known:
                continue
            known[word] = number
    path.write_text(json.dumps(tokenizer))


def stop_string(folder: Path, mean_tokens: int = MEAN_TURN_TOKENS) -> str:
    """What one token in ``mean_tokens`` holds, so that turns end by chance."""
    from transformers import AutoTokenizer

    from bench.rollout.model import nearest_pair

    tokenizer = AutoTokenizer.from_pretrained(folder)
    spelled = [tokenizer.decode([number]) for number in range(len(tokenizer))]
    return nearest_pair(spelled, len(spelled) / mean_tokens)
