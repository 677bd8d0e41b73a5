"""The policy of the rollout benches: random weights, so that it writes on and on, and turns that end by chance.

A stop string that one token in 64 holds ends a turn after 64 tokens in the mean, geometrically distributed: the long
tail of a real rollout, and the same draws for whoever asks with the same seeds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.learner.sizes import small_qwen2
from bench.retrieval.world import words
from preprocess.embedded.tiny_model import train_tokenizer

VOCABULARY = 4096
"""At most the rows of the model's embedding."""
WORDS = 2000
MEAN_TURN_TOKENS = 64


def write(folder: Path, layers: int = 2, width: int = 128) -> Path:
    """Write model and tokenizer to ``folder``; most words of the corpus are one token."""
    folder.mkdir(parents=True, exist_ok=True)
    inventory = words()[:WORDS]
    texts = [" ".join(inventory[first : first + 50]) for first in range(0, WORDS, 50)] * 4
    train_tokenizer(texts, folder, VOCABULARY)
    small_qwen2(layers, width).save_pretrained(folder)
    return folder


def stop_string(tokenizer: Any) -> str:
    """The two letters that are in one token of ``MEAN_TURN_TOKENS``, as nearly as the vocabulary has them."""
    tokens = [tokenizer.decode([number]) for number in range(len(tokenizer))]
    return nearest_pair(tokens, VOCABULARY / MEAN_TURN_TOKENS)


def nearest_pair(tokens: Iterable[str], wanted: float) -> str:
    """The pair of letters that occurs in a number of tokens nearest to ``wanted``; the first by alphabet of several."""
    counts = Counter(pair for token in tokens for pair in {token[i : i + 2] for i in range(len(token) - 1)})
    pairs = sorted(pair for pair in counts if pair.isalpha())
    return min(pairs, key=lambda pair: abs(counts[pair] - wanted))
