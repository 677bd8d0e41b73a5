"""A corpus of any size that looks like text to a BM25 engine, and queries for it; the same for everyone (seed 0).

100 words a passage out of 200,000, drawn by Zipf's law (exponent 1) with English stop words on the most frequent ranks;
a query is nine words of one passage, so about half are stop words, as in a question.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np

from bench.harness import ROOT
from search_agent.retrieval.index.analysis import STOP_WORDS
from search_agent.retrieval.index.building import build_index
from search_agent.retrieval.server.loading import default_folder

VOCABULARY = 200_000
PASSAGE_WORDS = 100
QUERY_WORDS = 9
BLOCK = 10_000
FOLDER = Path(os.environ.get("SLEUTH_BENCH_DATA", ROOT / "build" / "bench"))
"""Corpora and indexes are kept here between runs."""


def words() -> list[str]:
    """All words, the most frequent first."""
    return [*sorted(STOP_WORDS), *(f"{_syllables(number)}" for number in range(VOCABULARY - len(STOP_WORDS)))]


def corpus(num_passages: int) -> Path:
    """The corpus file, written the first time."""
    path = FOLDER / f"zipf_{num_passages}.jsonl"
    if not path.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        partial, inventory = path.with_suffix(".partial"), words()
        with partial.open("w") as file:
            for first in range(0, num_passages, BLOCK):
                for number, row in enumerate(draws(first // BLOCK, min(BLOCK, num_passages - first)), first):
                    text = " ".join(inventory[word] for word in row)
                    title = f"{inventory[row[0]]} {inventory[row[1]]}"
                    file.write(json.dumps({"id": str(number), "contents": f'"{title}"\n{text}'}) + "\n")
        partial.rename(path)
    return path


def indexed(num_passages: int) -> tuple[Path, Path]:
    """The corpus and its finished index, built the first time."""
    path = corpus(num_passages)
    build_index(path, default_folder(path))
    return path, default_folder(path)


def draws(block: int, num_passages: int) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """Word numbers of consecutive passages, ``[passages, words]``."""
    cumulative = np.cumsum(1 / np.arange(1, VOCABULARY + 1))
    uniform = np.random.default_rng((0, block)).random((num_passages, PASSAGE_WORDS))
    return np.searchsorted(cumulative / cumulative[-1], uniform).clip(0, VOCABULARY - 1)


def queries(number: int) -> list[str]:
    """Queries, each answerable by a passage of the first block."""
    rng, inventory = np.random.default_rng(1), words()
    rows = draws(0, min(BLOCK, max(1, number)))
    picked = rng.integers(0, len(rows), number)
    return [" ".join(inventory[word] for word in rng.choice(rows[row], QUERY_WORDS, replace=False)) for row in picked]


def _syllables(number: int) -> str:
    """A pronounceable word for a number, different for each."""
    consonants, vowels = "bdfgklmnprstvz", "aeiou"
    out = ""
    number += 1
    while number:
        number, rest = divmod(number, len(consonants) * len(vowels))
        out += consonants[rest // len(vowels)] + vowels[rest % len(vowels)]
    return out + "x"
