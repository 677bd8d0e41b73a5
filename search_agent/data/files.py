"""Data plug-in: the user's own files (FlashRAG jsonl, or parquet), and one corpus for all splits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from search_agent.data.source import Source, Split


@dataclass(frozen=True)
class Config:
    """Paths; relative ones start at the directory that the command runs in."""

    train: str
    """Training tasks."""
    dev: str
    """Tasks that checkpoints are chosen by; never the test set."""
    test: str
    """Tasks that are reported."""
    corpus: str | None = None
    """Passages that ``retriever=embedded`` serves; null with a retriever URL."""
    traces: str | None = None
    """Recorded trajectories for a warm-up; null where ``warmup.steps`` is 0."""
    traces_fraction: float = 1.0
    """Share of them that is learned from, drawn by ``seed``: how much data a method needs. A smaller share is part of
    every larger one."""
    prompts: bool = False
    """Whether the column ``prompt`` (one user message, or text) is the whole prompt, used as it stands: for ready-made
    parquet in the published wording. False renders the column ``question`` by the protocol; a row without that column
    is used as it stands in any case."""


def build(config: Config, *, out: Path, seed: int) -> Source:
    """Name the files; reading, and every complaint about them, is the loader's. ``out`` and ``seed`` are not needed."""
    corpus = Path(config.corpus) if config.corpus else None
    return Source(
        train=Split(Path(config.train), corpus, config.prompts),
        dev=Split(Path(config.dev), corpus, config.prompts),
        test=Split(Path(config.test), corpus, config.prompts),
        traces=Path(config.traces) if config.traces else None,
        traces_fraction=config.traces_fraction,
    )
