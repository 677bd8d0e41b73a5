"""Lucene by Pyserini as the back end: the indexes that Search-R1, FlashRAG and DeepRetrieval publish and build.

    bash retrieval_launch.sh backend.plugin=search_agent.retrieval.backends.lucene backend.index=DIR [corpus=FILE]

An index that stores its documents (``--storeRaw``) needs no corpus; for another one give the corpus it was made of,
whose rows its document ids count from 0. Needs the package ``pyserini`` (the extra ``lucene``) and Java 21.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from search_agent.retrieval.backends.backend import Backend, Hit, cut
from search_agent.retrieval.backends.http import passage_hit
from search_agent.retrieval.index.documents import Documents
from verl.errors import InfrastructureError, UserError, at_least

MAX_CLAUSES = 1024
"""Terms that a Boolean query of Lucene may have."""


@dataclass(frozen=True)
class Config:
    """An index and its settings."""

    index: Path
    """Folder of a Lucene index."""
    k1: float = 0.9
    """BM25's k1; 0.9 is Pyserini's own, with which published figures were made."""
    b: float = 0.4
    """BM25's b; 0.4 is Pyserini's own."""
    threads: int = 4
    """Threads of Lucene that share a batch."""

    def __post_init__(self) -> None:
        at_least(self, 1, "threads")


def build(config: Config, documents: Documents) -> Lucene:
    """Raises UserError if Pyserini or the index is missing, or if passages are neither stored nor given."""
    if not config.index.is_dir():
        raise UserError(f"index: there is no folder {config.index}")
    try:
        from pyserini.search.lucene import LuceneSearcher
    except Exception as error:  # without a Java 21 it fails in ways of its own
        raise UserError(
            f"backend: Pyserini cannot be loaded ({error}); pip install 'sleuth[lucene]', Java 21"
        ) from error
    return Lucene(config, LuceneSearcher(str(config.index)), documents)


class Lucene(Backend):
    """One index, searched by Pyserini."""

    max_batch = 64

    def __init__(self, config: Config, searcher: Any, documents: Documents) -> None:
        self._config, self._searcher, self._documents = config, searcher, documents
        searcher.set_bm25(config.k1, config.b)
        self._count = int(searcher.num_docs)
        self._stored = self._count > 0 and searcher.doc(0).raw() is not None
        if not self._stored and len(documents) != self._count:
            raise UserError(
                f"corpus: {config.index} holds {self._count} documents without text, the corpus {len(documents)}; "
                "give the corpus it was made of"
            )

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """Scores and their order are Lucene's."""
        names = [str(number) for number in range(len(queries))]
        asked = [cut(query, MAX_CLAUSES) for query in queries]
        found = self._searcher.batch_search(asked, names, k=k, threads=self._config.threads)
        return [[self._hit(place, hit) for place, hit in enumerate(found.get(name, []))] for name in names]

    def _hit(self, place: int, hit: Any) -> Hit:
        if not self._stored:
            return Hit(self._number(str(hit.docid)), float(hit.score))
        raw = self._searcher.doc(hit.docid).raw()
        try:
            row = orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            raise InfrastructureError(f"document {hit.docid} of {self._config.index} is not JSON") from error
        return passage_hit(place, float(hit.score), {"id": str(hit.docid), **row})

    def _number(self, name: str) -> int:
        """The row of a document, whose id must be its own."""
        number = int(name) if name.isascii() and name.isdigit() else -1
        if not 0 <= number < len(self._documents) or self._documents.parsed(number)["id"] != name:
            raise InfrastructureError(f"document {name} of {self._config.index} is not that row of the corpus")
        return number

    def manifest(self) -> dict[str, Any]:
        settings = {"index": self._config.index.name, "k1": self._config.k1, "b": self._config.b}
        return {"name": "lucene", **settings, "documents": self._count}

    def implementation(self) -> str:
        return "pyserini"
