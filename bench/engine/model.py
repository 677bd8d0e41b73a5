"""The model that the engine benches load: the quick start's shape, random weights."""

from __future__ import annotations

from pathlib import Path

from preprocess.embedded.tiny_model import train_tokenizer, write_model


def write(folder: Path) -> Path:
    """Write it and its tokenizer to ``folder``."""
    texts = [f"<search> who wrote number {i} ? </search>\n<answer> {i * 7} </answer>" for i in range(400)]
    tokenizer = train_tokenizer(texts, folder)
    write_model(folder, len(tokenizer), seed=0)
    return folder
