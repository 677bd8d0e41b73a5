"""``python -m search_agent.retrieval.index corpus=FILE [index=DIR]``: build an index ahead of serving it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from search_agent.retrieval.index.building import build_index
from search_agent.retrieval.server.loading import default_folder
from verl.config.arguments import parse, run


@dataclass(frozen=True)
class IndexConfig:
    """What to index, and where the index goes."""

    corpus: Path
    """Passages: ``.jsonl``, ``.parquet`` or ``.tsv`` with the columns of a corpus, or ``.gz`` of the first and last."""
    index: Path | None = None
    """Folder of the index; beside the corpus, with ``.index`` appended, unless given."""


def main(arguments: Sequence[str]) -> int:
    """Build, or say that it is built already. Raises UserError."""
    config = parse(IndexConfig, arguments)
    folder = config.index or default_folder(config.corpus)
    manifest = build_index(config.corpus, folder)
    print(f"{folder}: {manifest['documents']:,} passages")
    return 0


if __name__ == "__main__":
    run(main)
