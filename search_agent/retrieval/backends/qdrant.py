"""Qdrant as the back end: queries become vectors here, and are found there.

    bash retrieval_launch.sh backend.plugin=search_agent.retrieval.backends.qdrant backend.collection=wiki18 \\
        backend.url=http://HOST:6333 backend.encoder.model=intfloat/e5-base-v2 backend.encoder.family=e5

A point's payload holds ``id`` and ``contents``, or ``id``, ``title`` and ``text``, as the rows of a corpus do; without
``id`` the point's own is taken. Needs the package ``qdrant-client`` (the extra ``qdrant``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search_agent.retrieval.backends.backend import Backend, Hit
from search_agent.retrieval.backends.http import passage_hit, secret
from search_agent.retrieval.config import EncoderConfig
from search_agent.retrieval.index.documents import Documents
from verl.errors import InfrastructureError, UserError

PAYLOAD = ("id", "contents", "title", "text")


@dataclass(frozen=True)
class Config:
    """Where the collection is, and what made its vectors."""

    collection: str
    """Name of the collection."""
    encoder: EncoderConfig
    """The encoder that made the vectors of the collection."""
    url: str = ""
    """Address of a Qdrant server, ``http://HOST:6333``."""
    path: Path | None = None
    """Folder of a local collection instead, which the client searches itself: for tests and small corpora."""
    vector: str = ""
    """Name of the vector, where points hold several."""
    key_variable: str = ""
    """Environment variable that holds the server's API key; none if empty."""
    timeout_s: int = 10
    """Seconds that one request may take."""

    def __post_init__(self) -> None:
        if bool(self.url) == (self.path is not None):
            raise UserError("url: give the address of a server, or path= of a local collection")


def build(config: Config, documents: Documents) -> Qdrant:
    """Raises UserError if there is no such collection or the encoder makes other vectors."""
    from search_agent.retrieval.backends.encoder import Encoder

    return Qdrant(config, _client(config), Encoder(config.encoder, "encoder"))


def _client(config: Config) -> Any:
    try:
        from qdrant_client import QdrantClient
    except ModuleNotFoundError as error:
        raise UserError("backend: qdrant-client is not installed; pip install 'sleuth[qdrant]'") from error
    if config.path is not None:
        return QdrantClient(path=str(config.path))
    key = secret(config.key_variable, "key_variable")
    return QdrantClient(url=config.url, api_key=key, timeout=config.timeout_s, check_compatibility=False)


class Qdrant(Backend):
    """One collection, and the encoder that its vectors were made by."""

    max_batch = 64

    def __init__(self, config: Config, client: Any, encoder: Any) -> None:
        self._config, self._client, self._encoder = config, client, encoder
        if not self._asked(client.collection_exists, config.collection):
            raise UserError(f"collection: there is no {config.collection} at {config.url or config.path}")
        held = self._asked(client.get_collection, config.collection).config.params.vectors
        vectors = held.get(config.vector) if isinstance(held, dict) else held
        if vectors is None or bool(config.vector) != isinstance(held, dict):
            known = ", ".join(held) if isinstance(held, dict) else "one without a name"
            raise UserError(f"vector: {config.vector!r} is not in the collection, which holds {known}")
        if vectors.size != encoder.dimensions or vectors.distance.value not in ("Dot", "Cosine"):
            raise UserError(
                f"encoder: it makes vectors of {encoder.dimensions} numbers, compared by inner product or cosine; the "
                f"collection holds {vectors.size} numbers, compared by {vectors.distance.value}"
            )

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        from qdrant_client.models import QueryRequest

        requests = [
            QueryRequest(query=vector.tolist(), using=self._config.vector or None, limit=k, with_payload=list(PAYLOAD))
            for vector in self._encoder.encode_queries(queries)
        ]
        replies = self._asked(self._client.query_batch_points, self._config.collection, requests)
        return [
            [
                passage_hit(place, float(point.score), {"id": str(point.id), **(point.payload or {})})
                for place, point in enumerate(reply.points)
            ]
            for reply in replies
        ]

    def manifest(self) -> dict[str, Any]:
        config, encoder = self._config, self._config.encoder
        made = {"model": encoder.model, "family": encoder.family, "max_tokens": encoder.max_tokens}
        return {
            "name": "qdrant",
            "url": config.url,
            "collection": config.collection,
            "vector": config.vector,
            **made,
        }

    def implementation(self) -> str:
        return type(self._client).__name__

    @staticmethod
    def _asked(ask: Any, *arguments: Any) -> Any:
        from httpx import HTTPError
        from qdrant_client.http.exceptions import ApiException

        try:
            return ask(*arguments)
        except (ApiException, HTTPError, OSError) as error:
            raise InfrastructureError(f"Qdrant does not answer: {type(error).__name__}: {str(error)[:200]}") from error
