"""A tiny random model of the kind of Qwen2.5-VL with its tokenizer, and pictures of one colour."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from PIL import Image
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from preprocess.embedded import tiny_model
from verl.data.pictures import Pictures

MARKS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
PREPROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "image_mean": [0.48, 0.46, 0.41],
    "image_std": [0.27, 0.26, 0.28],
    "patch_size": 14,
    "merge_size": 2,
    "temporal_patch_size": 2,
    "size": {"shortest_edge": 3136, "longest_edge": 12845056},
}


def write_tiny_vl(folder: Path) -> Pictures:
    """Write all that a released model has; two layers of text, two of sight."""
    tokens = tiny_model.CHAT_TOKENS
    tiny_model.CHAT_TOKENS = (*tokens, *MARKS)  # type: ignore[assignment]
    try:
        tokenizer = tiny_model.train_tokenizer(["what colour is it ? <answer> A </answer> red blue"], folder)
    finally:
        tiny_model.CHAT_TOKENS = tokens
    start, end, pad, video = (int(tokenizer.convert_tokens_to_ids(mark)) for mark in MARKS)
    text = {
        **{"vocab_size": len(tokenizer), "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
        **{"num_key_value_heads": 2, "intermediate_size": 128, "max_position_embeddings": 1024},
        "rope_parameters": {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0},
        **{"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0, "tie_word_embeddings": True},
        "initializer_range": 0.2,
    }
    sight = {
        **{"depth": 2, "hidden_size": 64, "num_heads": 2, "intermediate_size": 64, "out_hidden_size": 128},
        **{"patch_size": 14, "spatial_merge_size": 2, "window_size": 112, "fullatt_block_indexes": [1]},
        "initializer_range": 0.2,
    }
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=sight,
        image_token_id=pad,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
        tie_word_embeddings=True,
    )
    torch.manual_seed(3)
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    pictures = Pictures.of(folder)
    assert pictures is not None
    return pictures


def write_picture(path: Path, colour: str, size: tuple[int, int] = (80, 60)) -> str:
    Image.new("RGB", size, colour).save(path)
    return str(path)
