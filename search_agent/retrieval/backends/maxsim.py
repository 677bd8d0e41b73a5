"""Exact MaxSim search over a small corpus: every token of every passage is compared with every token of the query.

The token vectors stand beside the index of the corpus as float16, with a manifest that says how they were made. A
corpus that is too large for this is re-ranked instead, or searched by a ColBERT server (the client's
``dialect=api_search``).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from search_agent.retrieval.backends.backend import Hit
from search_agent.retrieval.backends.colbert import Colbert, Vectors
from search_agent.retrieval.config import ColbertConfig
from search_agent.retrieval.index import index_files
from search_agent.retrieval.index.documents import Documents
from search_agent.retrieval.index.progress import Progress
from verl.errors import UserError

MAX_PASSAGES = 200_000
"""About 5 GB of token vectors of 128 numbers, and some seconds a query on one core."""
CHUNK_PASSAGES = 256
BLOCK_TOKENS = 16_384
BLOCK_QUERIES = 8


class MaxSim:
    """See ``Backend``."""

    max_batch = 16

    def __init__(
        self, model: Colbert, tokens: npt.NDArray[np.float16], starts: npt.NDArray[np.int64], settings: dict[str, Any]
    ) -> None:
        self._model, self._tokens, self._starts, self._settings = model, tokens, starts, settings

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """See ``Backend.search``. A blank query has no meaning to rank by, and finds nothing."""
        asked = [number for number, query in enumerate(queries) if query.strip()]
        out: list[list[Hit]] = [[] for _ in queries]
        for start in range(0, len(asked), BLOCK_QUERIES):
            chosen = asked[start : start + BLOCK_QUERIES]
            scores = all_scores(self._model.encode_queries([queries[n] for n in chosen]), self._tokens, self._starts)
            for number, row in zip(chosen, scores, strict=True):
                best = np.argsort(-row, kind="stable")[:k]
                out[number] = [Hit(int(doc), float(row[doc])) for doc in best]
        return out

    def manifest(self) -> dict[str, Any]:
        """See ``Backend.manifest``."""
        return {"name": "colbert", **self._settings}

    def implementation(self) -> str:
        """See ``Backend.implementation``."""
        return "exact MaxSim"


def all_scores(
    queries: Vectors, tokens: npt.NDArray[np.float16], starts: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """MaxSim of each query with each passage, block of passages by block of passages; ``[queries, passages]``.

    ``queries`` is ``[queries, query tokens, dimensions]``; passage i has ``tokens[starts[i] : starts[i + 1]]``.
    """
    num_passages, (num_queries, length, dimensions) = len(starts) - 1, queries.shape
    flat = queries.reshape(-1, dimensions).T
    scores = np.zeros((num_queries, num_passages), np.float32)
    low = 0
    while low < num_passages:
        high = int(np.searchsorted(starts, starts[low] + BLOCK_TOKENS, side="right")) - 1
        high = min(num_passages, max(low + 1, high))
        products = np.asarray(tokens[starts[low] : starts[high]], np.float32) @ flat
        best = np.maximum.reduceat(products, starts[low:high] - starts[low], axis=0)
        scores[:, low:high] = best.reshape(high - low, num_queries, length).sum(2).T
        low = high
    return scores


def open_maxsim(config: ColbertConfig, folder: Path, documents: Documents, documents_hash: str) -> MaxSim:
    """The back end over an index folder; token vectors are made first where they are missing, resumably.

    Raises UserError if the corpus is too large, the model is no ColBERT, or vectors there were made in another way.
    """
    if len(documents) > MAX_PASSAGES:
        raise UserError(
            f"backend: colbert compares every token, and {len(documents)} passages are above {MAX_PASSAGES}; re-rank "
            "with rerank.kind=colbert, or run a ColBERT server and give clients dialect=api_search"
        )
    model = Colbert(config.model, config.query_tokens, config.passage_tokens, "colbert")
    made = {"model": config.model, "passage_tokens": config.passage_tokens, "dimensions": model.dimensions}
    home = folder / ("colbert-" + Path(config.model).name)
    with index_files.exclusive(home):
        home.mkdir(parents=True, exist_ok=True)
        index_files.claim(home, {**made, "documents": documents_hash})
        tokens, starts = _token_vectors(home, documents, model)
    return MaxSim(model, tokens, starts, {**made, "query_tokens": config.query_tokens})


def _token_vectors(
    home: Path, documents: Documents, model: Colbert
) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.int64]]:
    """Vectors ``[tokens, dimensions]``, mapped, and where each passage begins; goes on where a run was interrupted."""
    path, lengths_path, row_bytes = home / "tokens.f16", home / "lengths.i32", 2 * model.dimensions
    progress = Progress("encoding")
    with path.open("ab") as file, lengths_path.open("ab") as lengths_file:
        lengths_file.truncate(lengths_file.tell() // 4 * 4)
        known = np.fromfile(lengths_path, np.int32)
        complete = np.cumsum(known, dtype=np.int64) * row_bytes <= file.tell()  # lengths are written last
        done = int(complete.sum())
        lengths_file.truncate(4 * done)
        file.truncate(int(known[:done].sum(dtype=np.int64)) * row_bytes)
        for start in range(done, len(documents), CHUNK_PASSAGES):
            numbers = range(start, min(len(documents), start + CHUNK_PASSAGES))
            vectors = model.encode_passages([documents.parsed(number)["contents"] for number in numbers])
            file.write(np.concatenate(vectors).astype(np.float16).tobytes())
            file.flush()
            lengths_file.write(np.asarray([len(rows) for rows in vectors], np.int32).tobytes())
            lengths_file.flush()
            progress.show(numbers.stop, numbers.stop / len(documents))
    starts = np.zeros(len(documents) + 1, np.int64)
    np.cumsum(np.fromfile(lengths_path, np.int32), out=starts[1:])
    return np.memmap(path, np.float16, "r", shape=(int(starts[-1]), model.dimensions)), starts
