"""Dense retrieval: passages and queries as vectors of one encoder, the best inner products found by FAISS.

The vectors stand beside the BM25 index of the corpus, in a folder named after the model, with a manifest that says how
they were made; vectors made in another way are refused rather than searched. Importing this module imports FAISS.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from search_agent.retrieval.backends.backend import Backend, Hit
from search_agent.retrieval.backends.encoder import Encoder, Vectors
from search_agent.retrieval.config import DenseConfig
from search_agent.retrieval.index import index_files
from search_agent.retrieval.index.documents import Documents
from search_agent.retrieval.index.progress import Progress
from verl.durable import sync
from verl.errors import UserError

CHUNK_PASSAGES = 512
TRAINING_VECTORS = 200_000
REFINE_FACTOR = 30
"""Candidates that a refined index scores again, for each result asked for: one-bit codes rank roughly, and more probes
do not make up for it (``docs/results/retrieval.md``)."""
SCAN_BELOW_QUERIES = 4
"""FAISS scans vector by vector below this many queries and multiplies matrices from here on; its own bound (128,000
scalars of queries) leaves batches of a hundred unbatched, at an eighth of the speed."""
MAX_DEPTH_ON_GPU = 2048
"""FAISS returns no more than this from a GPU."""


class Dense(Backend):
    """An encoder and an index of vectors."""

    max_batch = 256

    def __init__(self, encoder: Encoder, index: Any, settings: dict[str, Any], *, on_gpu: bool = False) -> None:
        self._encoder = encoder
        self._index = index
        self._settings = settings
        self._max_depth = MAX_DEPTH_ON_GPU if on_gpu else index.ntotal
        faiss.cvar.distance_compute_blas_threshold = SCAN_BELOW_QUERIES * encoder.dimensions

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        return nearest(self._index, self._encoder.encode_queries(queries), k, self._max_depth)

    def manifest(self) -> dict[str, Any]:
        return {"name": "dense", **self._settings}

    def implementation(self) -> str:
        return f"faiss {faiss.__version__} {type(self._index).__name__}"


def nearest(index: Any, vectors: Vectors, k: int, max_depth: int | None = None) -> list[list[Hit]]:
    """The best inner products, best first, ties by number.

    FAISS breaks ties as it likes: it is asked for one more than k, and for more until the last is worse than the k-th,
    or ``max_depth`` is reached.
    """
    limit = min(index.ntotal, max_depth or index.ntotal)
    k = min(k, limit)
    depth = min(k + 1, limit)
    scores, numbers = index.search(vectors, depth)
    while depth < limit and ((scores[:, k - 1] == scores[:, -1]) & (numbers[:, -1] >= 0)).any():
        depth = min(2 * depth, limit)
        scores, numbers = index.search(vectors, depth)
    rows = zip(numbers.tolist(), scores.tolist(), strict=True)
    return [_ranked(zip(*row, strict=True))[:k] for row in rows]


def _ranked(pairs: Iterable[tuple[int, float]]) -> list[Hit]:
    """In order; FAISS fills up with -1 where it finds fewer than it was asked for."""
    return sorted((Hit(doc, score) for doc, score in pairs if doc >= 0), key=lambda hit: (-hit.score, hit.doc))


def open_dense(config: DenseConfig, folder: Path, documents: Documents, documents_hash: str) -> Dense:
    """The back end over an index folder; vectors are made first where they are missing, resumably.

    Raises UserError if the model cannot be loaded, or if vectors there were made by another model or of other passages.
    """
    encoder = Encoder(config)
    made = {
        "model": config.model,
        "family": config.family,
        "max_tokens": config.max_tokens,
        "dimensions": encoder.dimensions,
    }
    settings: dict[str, Any] = {**made, "probes": config.probes, "dtype": encoder.dtype}
    if config.vectors is not None:
        index = _read_index(config.vectors, faiss.IO_FLAG_MMAP)
        settings |= {"index": config.vectors.name, "sample": index_files.sample_of(config.vectors)}
    else:
        home = folder / ("dense-" + Path(config.model).name)
        index, dtype = _own_index(home, config.index, {**made, "documents": documents_hash}, documents, encoder)
        settings |= {"index": config.index, "vectors": dtype}
    if index.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise UserError(f"dense.vectors: {config.vectors} compares by distance; build it for the inner product")
    if index.ntotal != len(documents) or index.d != encoder.dimensions:
        raise UserError(
            f"dense.vectors: {config.vectors} holds {index.ntotal} vectors of {index.d} numbers; the corpus has "
            f"{len(documents)} passages and the encoder makes {encoder.dimensions}"
        )
    set_probes(index, config.probes)
    if config.gpus:
        index = spread(index, config.gpus)
    return Dense(encoder, index, settings, on_gpu=config.gpus > 0)


def spread(index: Any, gpus: int) -> Any:
    """A part of the index on each of the first ``gpus`` GPUs. Raises UserError if FAISS cannot. Never run on a GPU."""
    found = faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0
    if found < gpus:
        raise UserError(f"dense.gpus={gpus}: FAISS sees {found} here; write {found}, or install faiss-gpu")
    options = faiss.GpuMultipleClonerOptions()
    options.shard = True
    try:
        return faiss.index_cpu_to_gpus_list(index, co=options, gpus=list(range(gpus)))
    except RuntimeError as error:  # HNSW, among others
        kind = type(faiss.downcast_index(index)).__name__
        raise UserError(f"dense.gpus={gpus}: FAISS has no {kind} on GPUs; write dense.gpus=0") from error


def _read_index(path: Path, flags: int = 0) -> Any:
    try:
        return faiss.read_index(str(path), flags)
    except RuntimeError as error:
        fault = "is no FAISS index" if path.is_file() else "is not there"
        raise UserError(f"dense.vectors: {path} {fault}; give a file that faiss.write_index wrote") from error


def _own_index(
    home: Path, factory: str, made: dict[str, Any], documents: Documents, encoder: Encoder
) -> tuple[Any, str]:
    """The FAISS index over vectors of ours, and what they were computed in; both are made where they are missing.

    A flat index is made from the vectors at every start, others are kept.
    """
    path, kept = home / "vectors.f32", home / f"{factory.replace('/', '_')}.faiss"
    shape = (len(documents), encoder.dimensions)
    is_whole = path.exists() and path.stat().st_size == 4 * math.prod(shape) and (home / index_files.MANIFEST).exists()
    if not is_whole or (factory != "Flat" and not kept.exists()):
        with index_files.exclusive(home):
            index_files.claim(home, made, encoder.dtype)
            _encode(path, documents, encoder)
            if factory != "Flat" and not kept.exists():
                partial = kept.with_suffix(".partial")
                faiss.write_index(make_index(factory, np.memmap(path, np.float32, "r", shape=shape)), str(partial))
                sync(partial)
                partial.replace(kept)
    dtype = index_files.claim(home, made, encoder.dtype)
    if factory == "Flat":
        return make_index(factory, np.memmap(path, np.float32, "r", shape=shape)), dtype
    return _read_index(kept), dtype


def _encode(path: Path, documents: Documents, encoder: Encoder) -> None:
    """Write ``[documents, dimensions]`` float32; goes on where an interrupted run stopped."""
    row_bytes = 4 * encoder.dimensions
    progress = Progress("encoding")
    with path.open("ab") as file:
        done = file.tell() // row_bytes
        file.truncate(done * row_bytes)
        for start in range(done, len(documents), CHUNK_PASSAGES):
            numbers = range(start, min(len(documents), start + CHUNK_PASSAGES))
            file.write(encoder.encode_passages([documents.parsed(n)["contents"] for n in numbers]).tobytes())
            file.flush()
            progress.show(numbers.stop, numbers.stop / len(documents))


def make_index(factory: str, vectors: Vectors) -> Any:
    """A trained FAISS index of inner products. Raises UserError if FAISS does not know the factory string."""
    try:
        index = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise UserError(
            f"dense.index: {factory!r} is no FAISS factory string; write Flat, IVF4096,SQ8 or HNSW32"
        ) from error
    try:
        if not index.is_trained:
            index.train(_sample(vectors))
        for start in range(0, len(vectors), TRAINING_VECTORS):
            index.add(np.ascontiguousarray(vectors[start : start + TRAINING_VECTORS]))
    except RuntimeError as error:  # more lists or codes than there are vectors
        raise UserError(
            f"dense.index: {factory} cannot be made of {len(vectors)} vectors; write Flat, or fewer lists"
        ) from error
    return index


def _sample(vectors: Vectors) -> npt.NDArray[np.float32]:
    """At most ``TRAINING_VECTORS`` of them, drawn with a fixed seed."""
    if len(vectors) <= TRAINING_VECTORS:
        return np.ascontiguousarray(vectors)
    chosen = np.random.default_rng(0).choice(len(vectors), TRAINING_VECTORS, replace=False)
    return np.ascontiguousarray(vectors[np.sort(chosen)])


def set_probes(index: Any, probes: int) -> None:
    """Set the depth of an approximate search, inside whatever wraps it."""
    refined = faiss.try_extract_index_ivf(index)
    inner = faiss.downcast_index(index)
    if isinstance(inner, faiss.IndexRefine):
        inner.k_factor = REFINE_FACTOR
        inner = faiss.downcast_index(inner.base_index)
    if refined is not None:
        refined.nprobe = min(probes, refined.nlist)
    elif isinstance(inner, faiss.IndexHNSW):
        inner.hnsw.efSearch = probes
