"""The published shape of a retrieval server, for comparison: ``python -m bench.retrieval.peer CORPUS ANNOUNCE``.

A FastAPI application with a synchronous handler (a thread a request), models checked by pydantic, one engine call a
request, and the rows of the hits parsed one by one. The engine is ``bm25s`` with its numba back end, over an index
built ahead and memory-mapped.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
import Stemmer
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from search_agent.retrieval.index.building import build_index
from verl.durable import write_atomically


class Query(BaseModel):
    """A request of ``/retrieve``."""

    queries: list[str]
    topk: int | None = None
    return_scores: bool = False


class Rows:
    """Passages by number, read and parsed when asked for."""

    def __init__(self, path: Path, offsets: Path) -> None:
        self._path = path
        self._offsets = np.load(offsets)

    def __getitem__(self, number: int) -> dict[str, Any]:
        with self._path.open("rb") as file:
            file.seek(int(self._offsets[number]))
            row: dict[str, Any] = json.loads(file.readline())
            return row


def make(folder: Path) -> FastAPI:
    """The application over an index folder."""
    engine = bm25s.BM25.load(folder, mmap=True, backend="numba")
    rows = Rows(folder / "documents.jsonl", folder / "documents.offsets.npy")
    stemmer = Stemmer.Stemmer("english")
    app = FastAPI()

    @app.post("/retrieve")
    def retrieve(request: Query) -> dict[str, Any]:
        results = []
        for query in request.queries:
            tokens = bm25s.tokenize(query, stopwords="en", stemmer=stemmer, show_progress=False)
            numbers, scores = engine.retrieve(tokens, k=request.topk or 3, show_progress=False, n_threads=1)
            pairs = zip(numbers[0], scores[0], strict=True)
            results.append([{"document": rows[int(number)], "score": float(score)} for number, score in pairs])
        return {"result": results}

    retrieve(Query(queries=["warm up the compiler"]))
    return app


def main(corpus: Path, announce: Path) -> None:
    """Serve on a free port and write its URL."""
    folder = corpus.with_name(corpus.name + ".index")
    build_index(corpus, folder)
    config = uvicorn.Config(make(folder), host="127.0.0.1", port=0, log_level="warning", access_log=False)
    listener = config.bind_socket()
    listener.listen()
    write_atomically(announce, f"http://127.0.0.1:{listener.getsockname()[1]}".encode())
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
