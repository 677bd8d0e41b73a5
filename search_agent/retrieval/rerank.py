"""Re-ranking by a cross-encoder: a model that reads query and passage together judges the first hits of a back end.

Each query is judged against its own passages only. Importing this module imports torch and transformers.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from search_agent.retrieval.backend import Backend, Hit
from search_agent.retrieval.config import RerankConfig
from search_agent.retrieval.documents import Documents
from verl.errors import UserError

BATCH_PAIRS = 32


class Reranked:
    """A back end whose first hits are put in a new order; their scores are the cross-encoder's."""

    def __init__(self, inner: Backend, documents: Documents, config: RerankConfig) -> None:
        self._inner = inner
        self._documents = documents
        self._config = config
        self._lock = threading.Lock()  # a fast tokenizer raises when two threads use it at once
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(config.model)
            model: Any = AutoModelForSequenceClassification.from_pretrained(config.model, dtype=torch.float32)
        except (OSError, ValueError) as error:
            first = str(error).splitlines()[0]
            raise UserError(f"rerank.model: {config.model} cannot be loaded: {first}; give a cross-encoder") from error
        if model.config.num_labels != 1:
            raise UserError(
                f"rerank.model: {config.model} has {model.config.num_labels} outputs; a cross-encoder has one"
            )
        self._model = model.to(self._device).eval()
        self.max_batch = inner.max_batch

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """See ``Backend.search``; at most ``depth`` hits, however large k is."""
        found = self._inner.search(queries, self._config.depth)
        pairs = [
            (query, self._documents.parsed(hit.doc)["contents"])
            for query, hits in zip(queries, found, strict=True)
            for hit in hits
        ]
        scores = iter(self._judge(pairs))
        judged = [[Hit(hit.doc, next(scores)) for hit in hits] for hits in found]
        return [sorted(hits, key=lambda hit: (-hit.score, hit.doc))[:k] for hits in judged]

    def manifest(self) -> dict[str, Any]:
        """See ``Backend.manifest``."""
        settings = {"model": self._config.model, "depth": self._config.depth, "max_tokens": self._config.max_tokens}
        return {"backend": "reranked", **settings, "over": self._inner.manifest()}

    def implementation(self) -> str:
        """See ``Backend.implementation``."""
        return f"{self._inner.implementation()} + {type(self._model).__name__}"

    @torch.inference_mode()
    def _judge(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """The score of each (query, passage); a passage that is too long is cut, never the query."""
        scores: list[float] = []
        for start in range(0, len(pairs), BATCH_PAIRS):
            queries, passages = zip(*pairs[start : start + BATCH_PAIRS], strict=True)
            with self._lock:
                inputs = self._tokenizer(
                    list(queries),
                    list(passages),
                    padding=True,
                    truncation="only_second",
                    max_length=self._config.max_tokens,
                    return_tensors="pt",
                )
            scores += self._model(**inputs.to(self._device)).logits[:, 0].tolist()
        return scores
