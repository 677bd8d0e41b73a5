"""Re-ranking: a model that reads the text of query and passage judges the first hits of a back end.

Each query is judged against its own passages only. Importing this module imports torch and transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from transformers import AutoModelForSequenceClassification

from search_agent.retrieval.backends.backend import Backend, Hit, Selective, selective
from search_agent.retrieval.backends.colbert import ColbertJudge
from search_agent.retrieval.backends.encoder import Model
from search_agent.retrieval.config import RerankConfig
from search_agent.retrieval.index.documents import Documents
from verl.errors import UserError

BATCH_PAIRS = 32


class Judge(Protocol):
    """Scores passages for a query."""

    dtype: str
    """What it computes in."""

    def judge(self, queries: Sequence[str], passages: Sequence[Sequence[str]]) -> list[list[float]]:
        """The score of each query's own passages, higher is better."""


class Reranked(Selective):
    """A back end whose first hits are put in a new order; their scores are the judge's."""

    def __init__(self, inner: Backend, documents: Documents, config: RerankConfig) -> None:
        self._inner = inner
        self._documents = documents
        self._config = config
        self._judge: Judge = CrossEncoder(config) if config.kind == "cross_encoder" else ColbertJudge(config)
        self.max_batch = inner.max_batch

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """At most ``depth`` hits, however large k is."""
        return self._judged(queries, self._inner.search(queries, self._config.depth), k)

    def search_selected(self, queries: Sequence[str], k: int, options: Mapping[str, Any]) -> list[list[Hit]]:
        found = selective(self._inner).search_selected(queries, self._config.depth, options)
        return self._judged(queries, found, k)

    def check(self, options: Mapping[str, Any]) -> None:
        selective(self._inner).check(options)

    def count(self, options: Mapping[str, Any]) -> int:
        return selective(self._inner).count(options)

    def _judged(self, queries: Sequence[str], found: list[list[Hit]], k: int) -> list[list[Hit]]:
        texts = [[self._documents.contents_of(hit) for hit in hits] for hits in found]
        scores = self._judge.judge(queries, texts)
        judged = [
            [replace(hit, score=score) for hit, score in zip(hits, row, strict=True)]
            for hits, row in zip(found, scores, strict=True)
        ]
        return [sorted(hits, key=lambda hit: (-hit.score, hit.doc))[:k] for hits in judged]

    def manifest(self) -> dict[str, Any]:
        settings = {name: getattr(self._config, name) for name in ("model", "kind", "depth", "max_tokens")}
        return {"name": "reranked", **settings, "dtype": self._judge.dtype, "over": self._inner.manifest()}

    def implementation(self) -> str:
        return f"{self._inner.implementation()} + {type(self._judge).__name__}"


class CrossEncoder(Model):
    """A sequence classifier with one output, which reads query and passage together."""

    def __init__(self, config: RerankConfig) -> None:
        load = AutoModelForSequenceClassification.from_pretrained
        super().__init__(load, config.model, "rerank", "a cross-encoder", half=False)
        self._max_tokens, outputs = config.max_tokens, self._model.config.num_labels
        if outputs != 1:
            raise UserError(f"rerank.model: {config.model} has {outputs} outputs; a cross-encoder has one")
        with self.reads(config.max_tokens):
            self.judge(["0 " * config.max_tokens], [["0 " * config.max_tokens]])

    def judge(self, queries: Sequence[str], passages: Sequence[Sequence[str]]) -> list[list[float]]:
        """See ``Judge``."""
        pairs = [(query, text) for query, texts in zip(queries, passages, strict=True) for text in texts]
        scores = iter(self._scores(pairs))
        return [[next(scores) for _ in texts] for texts in passages]

    @torch.inference_mode()
    def _scores(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """The score of each (query, passage); the longer of the two is cut, and that may be the query."""
        scores: list[float] = []
        for start in range(0, len(pairs), BATCH_PAIRS):
            queries, passages = zip(*pairs[start : start + BATCH_PAIRS], strict=True)
            inputs = self._tokens(
                list(queries), list(passages), truncation="longest_first", max_length=self._max_tokens
            )
            scores += self._model(**inputs).logits[:, 0].tolist()
        return scores
