"""The steps of a build on disk: counted terms of consecutive passages, a few files a chunk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from search_agent.retrieval.index.postings import Chunk


def write_chunk(
    work: Path, number: int, chunk: Chunk, ids: Iterable[str], sizes: Sequence[int], new_terms: Iterable[str]
) -> None:
    """Write what was counted, the ids and the sizes of the documents, and the terms that no earlier chunk has."""
    hashes = [hashlib.blake2b(identity.encode(), digest_size=8).digest() for identity in ids]
    np.stack([chunk.terms, chunk.docs, chunk.counts], axis=1).tofile(_postings_path(work, number))
    arrays: dict[str, npt.NDArray[Any]] = {
        "lengths": chunk.lengths,
        "sizes": np.asarray(sizes, np.int32),
        "ids": np.frombuffer(b"".join(hashes), np.uint64),
    }
    for name, array in arrays.items():
        np.save(work / f"{number:06d}.{name}.npy", array)
    (work / f"{number:06d}.terms.txt").write_text("\n".join(new_terms), "utf-8")


def _postings_path(work: Path, number: int) -> Path:
    """Rows of (term, passage, count), int32, by term and then by passage."""
    return work / f"{number:06d}.postings.i32"


def read_terms(work: Path, number: int) -> Iterator[str]:
    """The terms that first appear in a chunk, in the order of their numbers."""
    text = (work / f"{number:06d}.terms.txt").read_text("utf-8")
    return iter(text.split("\n") if text else ())


def read_column(work: Path, num_chunks: int, name: str) -> npt.NDArray[Any]:
    """``lengths`` (terms a passage), ``sizes`` (bytes a document) or ``ids`` (hashes of them), of all chunks."""
    return np.concatenate([np.load(work / f"{number:06d}.{name}.npy") for number in range(num_chunks)])


def read_postings(work: Path, number: int, start: int = 0, stop: int | None = None) -> npt.NDArray[np.int32]:
    """Rows ``start`` to ``stop`` of a chunk, ``[rows, 3]``; read, not mapped: a large corpus has too many chunks."""
    count = -1 if stop is None else 3 * (stop - start)
    return np.fromfile(_postings_path(work, number), np.int32, count, offset=12 * start).reshape(-1, 3)
