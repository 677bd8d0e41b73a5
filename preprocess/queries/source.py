"""Data plug-in: one of the worlds in which a question is a poor query, built once for each seed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from preprocess.embedded.build import MANIFEST, build_once
from preprocess.queries.build import WORLD_VERSION, build_query_world
from preprocess.queries.worlds import Kind
from search_agent.data.source import Source, Split
from verl.errors import within

SERVERS: dict[Kind, tuple[str, ...]] = {
    "passages": ("max_k=10000",),
    "articles": ("max_k=10000", "backend.plugin=search_agent.retrieval.backends.pubmed", "backend.url=standin"),
    "database": (),
}
"""How a run's own server serves the world. Articles are searched in PubMed's wire format: our back end asks a stand-in
that holds the corpus."""


@dataclass(frozen=True)
class Config:
    """Which world, and its sizes."""

    kind: Kind = "passages"
    """``passages`` for BM25, ``articles`` for Boolean queries in PubMed's wire format, ``database`` for SQL."""
    train_questions: int = 4000
    """Questions about seven names in ten."""
    dev_questions: int = 200
    """Questions about names that training never asks about."""
    test_questions: int = 500
    """Questions about the rest of the names."""
    traces: int = 20000
    """Warm-up traces of an imperfect teacher, about names that training asks about."""

    def __post_init__(self) -> None:
        within(self, 5, 100_000, "train_questions", "dev_questions", "test_questions", "traces")


def build(config: Config, *, out: Path, seed: int) -> Source:
    """Build the world unless it stands in ``out`` already."""
    questions = {"train": config.train_questions, "dev": config.dev_questions, "test": config.test_questions}
    sizes = "-".join(str(count) for count in (*questions.values(), config.traces))
    root = out / f"queries-v{WORLD_VERSION}-{config.kind}-{seed}-{sizes}"
    build_once(root / MANIFEST, lambda: build_query_world(root, config.kind, seed, questions, config.traces))
    splits = {split: Split(root / f"{split}.jsonl", root / "corpus.jsonl") for split in questions}
    return Source(
        splits["train"],
        splits["dev"],
        splits["test"],
        model=root / "model",
        traces=root / "traces.jsonl",
        server=SERVERS[config.kind],
    )
