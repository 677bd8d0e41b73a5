"""Opens what a server serves: the passages, the back end over them, and the manifest that says what they are."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from search_agent.retrieval.backends.backend import Backend
from search_agent.retrieval.backends.bm25 import Bm25
from search_agent.retrieval.backends.hybrid import Hybrid
from search_agent.retrieval.config import ServerConfig
from search_agent.retrieval.index import index_files
from search_agent.retrieval.index.corpus import Faults, Passage, read_passages
from search_agent.retrieval.index.documents import Documents
from search_agent.retrieval.index.postings import Postings, Range, build_postings
from verl.config.build import Plugin
from verl.errors import UserError

MAX_BYTES_IN_MEMORY = 64 * 2**20
"""A larger corpus gets an index on disk, which is mapped, shared by processes, and built once."""
PACKED = 4
"""About how much larger a corpus is than its gzip file."""


@dataclass(frozen=True, slots=True)
class Served:
    """A corpus that is ready to be searched."""

    documents: Documents
    backend: Backend
    manifest: dict[str, Any]
    filters: tuple[str, ...] = ()
    """Fields that a request's ``options`` may name."""


def load(config: ServerConfig) -> Served:
    """Open the index of the corpus, building it first if it must, and warm it up.

    Raises UserError on a corpus that is missing, faulty or empty, and on an index of another corpus.
    """
    documents, backend, digest = _with_corpus(config, config.corpus) if config.corpus else _without_corpus(config)
    if config.filters and config.corpus is not None:
        from search_agent.retrieval.backends.filtered import Filtered, read_columns

        backend = Filtered(backend, read_columns(config.corpus, config.filters))
    if config.rerank is not None:
        from search_agent.retrieval.backends.rerank import Reranked

        backend = Reranked(backend, documents, config.rerank)
    if not isinstance(config.backend, Plugin):  # others check themselves, and a search may cost money
        backend.search(["warm up"], config.topk)
    return Served(documents, backend, make_manifest(config, digest, len(documents), backend), config.filters)


def _without_corpus(config: ServerConfig) -> tuple[Documents, Backend, str]:
    """A back end that holds the passages itself."""
    assert isinstance(config.backend, Plugin)  # ServerConfig demands it
    documents = Documents.from_rows(())
    return documents, config.backend.build(documents), ""


def _with_corpus(config: ServerConfig, corpus: Path) -> tuple[Documents, Backend, str]:
    folder, words = config.index, config.backend in ("bm25", "hybrid")
    if folder is None and (config.dense is not None or is_large(corpus)):
        folder = default_folder(corpus)
    documents, postings, digest = _open(corpus, folder, words)
    if isinstance(config.backend, Plugin):
        return documents, config.backend.build(documents), digest
    backends: list[Backend] = []
    if postings is not None:
        backends.append(Bm25(postings, Range.of_shard(config.shard, config.shards, postings.num_docs)))
    if config.dense is not None and folder is not None:
        from search_agent.retrieval.backends.dense import open_dense

        backends.append(open_dense(config.dense, folder, documents, digest))
    return documents, backends[0] if len(backends) == 1 else Hybrid(*backends), digest


def is_large(corpus: Path) -> bool:
    """Whether a corpus gets an index on disk."""
    size: int = index_files.source_of(corpus)["bytes"]
    return size * (PACKED if corpus.suffix == ".gz" else 1) > MAX_BYTES_IN_MEMORY


def default_folder(corpus: Path) -> Path:
    """Where the index of a corpus stands unless the user says otherwise."""
    return corpus.with_name(corpus.name + ".index")


def make_manifest(config: ServerConfig, digest: str, num_documents: int, backend: Backend) -> dict[str, Any]:
    """What ``/info`` says. The fingerprint changes whenever an answer could, and is the same for all shards."""
    identity = {"sha256": digest, "documents": num_documents, "backend": backend.manifest()}
    fingerprint = hashlib.sha256(orjson.dumps(identity, option=orjson.OPT_SORT_KEYS)).hexdigest()[:32]
    place = {"shard": config.shard, "shards": config.shards, "implementation": backend.implementation()}
    return {"corpus": config.corpus.name if config.corpus else None, **identity, **place, "fingerprint": fingerprint}


def _open(corpus: Path, folder: Path | None, words: bool) -> tuple[Documents, Postings | None, str]:
    """Passages, their index if ``words`` are searched, and a hash of the passages."""
    if folder is not None and not index_files.is_bm25s(folder):
        from search_agent.retrieval.index.building import build_index

        manifest = build_index(corpus, folder, words=words)
        postings = index_files.open_postings(folder, manifest["documents"]) if words else None
        return Documents.open(folder), postings, manifest["sha256"]
    documents, passages, digest = _in_memory(corpus)
    if not words:
        return documents, None, digest
    if folder is not None:
        return documents, index_files.open_bm25s(folder, len(documents)), digest
    return documents, build_postings(passage.contents for passage in passages), digest


def _in_memory(corpus: Path) -> tuple[Documents, list[Passage], str]:
    faults = Faults(corpus)
    passages = read_passages(corpus, faults)
    faults.raise_if_any()
    if not passages:
        raise UserError(f"corpus={corpus}: no passages in it")
    rows = [passage.to_json() for passage in passages]
    digest = hashlib.sha256(b"".join(row + b"\n" for row in rows)).hexdigest()
    return Documents.from_rows(rows), passages, digest
