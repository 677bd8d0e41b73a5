"""Builds a BM25 index of a corpus of any size in bounded memory, and goes on where it was interrupted.

First passages are counted in chunks, each of which is a finished step on disk; then the chunks, all sorted by term, are
merged block of terms by block of terms. Memory holds one chunk or one block, the vocabulary, and 12 bytes a passage.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from search_agent.retrieval.index import index_files
from search_agent.retrieval.index.chunks import read_column, read_terms, write_chunk
from search_agent.retrieval.index.corpus import Corpus, Faults
from search_agent.retrieval.index.documents import DATA_NAME
from search_agent.retrieval.index.merging import merge, write_offsets
from search_agent.retrieval.index.postings import K1, B, Lexicon, count_terms
from search_agent.retrieval.index.progress import Progress
from verl.durable import sync, write_atomically
from verl.errors import UserError

CHUNK_PASSAGES = 20_000
SETTINGS = {"name": "bm25", "k1": K1, "b": B, "analysis": "lower case, English stop words, Snowball english"}


@dataclass(slots=True)
class _State:
    """Where counting stands; written after each chunk."""

    source: dict[str, Any]
    chunk_passages: int
    chunks: int = 0
    rows: int = 0
    """Rows of the corpus that have been read."""
    passages: int = 0
    bytes: int = 0
    """Length of the documents written so far."""
    done: bool = False
    words: bool = True
    """Whether terms are counted too."""


def build_index(
    corpus: Path, folder: Path, chunk_passages: int = CHUNK_PASSAGES, *, words: bool = True
) -> dict[str, Any]:
    """Build the index of ``corpus`` in ``folder`` and return its manifest; a finished one is left as it is.

    Without ``words`` it holds the passages alone, which is all that a search by vectors needs. Raises UserError on a
    faulty corpus (all faulty rows are listed), and if ``folder`` cannot be written or holds the index of another one.
    """
    manifest = _finished(corpus, folder, words)
    if manifest is None:  # only then is a lock needed: a finished index may stand where nothing can be written
        with index_files.exclusive(folder):
            manifest = _finished(corpus, folder, words) or _build(corpus, folder, chunk_passages, words)
    return manifest


def _finished(corpus: Path, folder: Path, words: bool) -> dict[str, Any] | None:
    manifest = index_files.read_manifest(folder)
    if manifest is not None:
        index_files.check_source(folder, manifest, corpus)
    return manifest if manifest is not None and manifest.get("words", True) >= words else None


def _build(corpus: Path, folder: Path, chunk_passages: int, words: bool) -> dict[str, Any]:
    """Everything is made in the work folder and moved when it is on the disk; what servers read is never half new."""
    work = folder / index_files.WORK
    state = _resume(work, _State(index_files.source_of(corpus), chunk_passages, words=words))
    lexicon = Lexicon(term for number in range(state.chunks) for term in read_terms(work, number))
    _count(corpus, work, state, lexicon)
    if not state.passages:
        raise UserError(f"corpus={corpus}: no passages in it")
    _check_ids(corpus, work, state)
    made = [DATA_NAME, write_offsets(work, state.chunks)]
    manifest = {
        "format": index_files.FORMAT,
        "words": words,
        "source": {**state.source, "sha256": index_files.sha256_of(corpus)},
        "sha256": index_files.sha256_of(work / DATA_NAME),
        "documents": state.passages,
    }
    if words:
        num_postings = merge(work, state.chunks, len(lexicon.numbers))
        index_files.write_vocabulary(work, lexicon.numbers, _bm25s_parameters(state.passages))
        manifest["backend"] = {**SETTINGS, "terms": len(lexicon.numbers), "postings": num_postings}
        made += index_files.WORD_FILES
    for name in made:
        sync(work / name)
        (work / name).replace(folder / name)
    sync(folder)
    write_atomically(folder / index_files.MANIFEST, orjson.dumps(manifest, option=orjson.OPT_INDENT_2))
    shutil.rmtree(work)
    return manifest


def _bm25s_parameters(num_docs: int) -> dict[str, Any]:
    fixed = {"delta": 0.5, "method": "lucene", "idf_method": "lucene", "dtype": "float32", "int_dtype": "int32"}
    return {"k1": K1, "b": B, **fixed, "num_docs": num_docs, "version": "0.3.16", "backend": "numpy"}


def _resume(work: Path, fresh: _State) -> _State:
    """What an interrupted build of the same corpus left, or a fresh start."""
    path = work / "state.json"
    if path.exists():
        found = _State(**orjson.loads(path.read_bytes()))
        same = ("source", "chunk_passages", "words")
        if all(getattr(found, name) == getattr(fresh, name) for name in same) and (work / DATA_NAME).exists():
            return found
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    return fresh


def _count(corpus: Path, work: Path, state: _State, lexicon: Lexicon) -> None:
    """Count the passages that no finished chunk holds; the documents are written along the way."""
    faults, progress = Faults(corpus), Progress("counting terms" if state.words else "reading passages")
    with Corpus(corpus, faults) as source, (work / DATA_NAME).open("ab") as documents:
        documents.truncate(state.bytes)
        rows = source.rows(skip=state.rows) if not state.done else iter(())
        while passages := list(islice(rows, state.chunk_passages)):
            if faults.count:
                continue  # nothing will be built: only find the other faulty rows
            data = [row.passage.to_json() + b"\n" for row in passages]
            documents.write(b"".join(data))
            documents.flush()
            known = len(lexicon.numbers)
            texts = (row.passage.contents for row in passages if state.words)
            chunk = count_terms(texts, lexicon, state.passages)
            new_terms, ids = islice(lexicon.numbers, known, None), (row.passage.id for row in passages)
            write_chunk(work, state.chunks, chunk, ids, [len(row) for row in data], new_terms)
            state.chunks += 1
            state.rows = passages[-1].number
            state.passages += len(passages)
            state.bytes += sum(map(len, data))
            _save(work, state)
            progress.show(state.passages, source.fraction())
    if faults.count:
        shutil.rmtree(work)
    faults.raise_if_any()
    state.done = True
    _save(work, state)


def _save(work: Path, state: _State) -> None:
    record = {name: getattr(state, name) for name in _State.__slots__}
    write_atomically(work / "state.json", orjson.dumps(record))


def _check_ids(corpus: Path, work: Path, state: _State) -> None:
    """Raise UserError if an id stands in two rows; only then is the corpus read again to name them."""
    hashes = np.sort(read_column(work, state.chunks, "ids"))
    if not (hashes[1:] == hashes[:-1]).any():
        return
    faults, seen = Faults(corpus), set[str]()
    with Corpus(corpus, faults) as source:
        for row in source.rows():
            if row.passage.id in seen:
                faults.add(row.number, f"id {row.passage.id!r} for the second time")
            seen.add(row.passage.id)
    faults.raise_if_any()
