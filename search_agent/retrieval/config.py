"""Settings of the retrieval client and server. Imports nothing heavy, so that a mistake in a key answers at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from verl.config.build import Plugin
from verl.errors import UserError, above, at_least, within


@dataclass(frozen=True)
class ClientConfig:
    """How a process talks to retrieval servers."""

    urls: tuple[str, ...] = ("http://127.0.0.1:8000",)
    """Addresses of servers with the same corpus (``http://host:port``); requests take turns, past those that fail. The
    dialect's own path may stand behind, as in ``http://host:port/retrieve``."""
    dialect: Literal["retrieve", "batch_search", "api_search"] = "retrieve"
    """What the servers speak: ours and Search-R1's ``/retrieve``, ReSearch's ``/batch_search``, or the
    ``/api/search`` of ColBERT, which takes one query a request."""
    timeout_s: float = 30.0
    """Seconds one attempt may take; well above the slowest batch of a dense back end on a CPU."""
    retries: int = 6
    """Further attempts after a failed one, 0.2 s to 5 s apart (doubling, jittered): a server may restart meanwhile."""
    max_queries_per_request: int = 64
    """Queries that one POST may carry; 64 took most of the gain in our measurements and keeps a request short."""
    max_requests_in_flight: int = 4
    """POSTs at a time for each address; what is asked while all are under way travels together in the next one."""
    max_query_bytes: int = 2048
    """A longer query is cut here (bytes of UTF-8): a policy may write one of any length, an encoder reads a few hundred
    tokens, and servers refuse what is too long, ours above 8192."""
    cache: Literal["off", "cache", "record", "replay"] = "off"
    """``cache`` asks a server only what is not stored yet; ``record`` asks always and stores; ``replay`` needs no
    server, and a query that is not stored ends the run. Off, because a BM25 server answers in milliseconds."""
    cache_file: Path | None = None
    """SQLite file of stored answers, needed unless ``cache`` is off; processes of one machine may share it."""

    def __post_init__(self) -> None:
        if not self.urls:
            raise UserError("urls: empty; give at least one address such as http://127.0.0.1:8000")
        object.__setattr__(self, "urls", tuple(_server_address(url, self.dialect) for url in self.urls))
        above(self, 0, "timeout_s")
        at_least(self, 0, "retries")
        if self.cache in ("cache", "record") and self.dialect != "retrieve":
            raise UserError(f"cache: servers of dialect={self.dialect} have no fingerprint; write cache=off")
        if self.cache != "off" and self.cache_file is None:
            raise UserError(f"cache_file: cache={self.cache} needs a file; write cache_file=PATH, or cache=off")
        at_least(self, 1, "max_queries_per_request", "max_requests_in_flight")
        within(self, 1, 8192, "max_query_bytes")  # our server reads as much


PATHS = {"retrieve": "/retrieve", "batch_search": "/batch_search", "api_search": "/api/search"}
"""Where servers of each dialect are asked."""


def _server_address(url: str, dialect: str) -> str:
    """``http://HOST:PORT`` of an address as people paste it. Raises UserError if it is none, or of another dialect."""
    parts = urlsplit(url.strip())
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
        raise UserError(f"urls: {url!r} is no address; write http://HOST:PORT")
    path = parts.path.rstrip("/")
    for other, route in PATHS.items():
        if path.endswith(route):
            if other != dialect:
                raise UserError(f"urls: {url!r} speaks dialect={other}; write client.dialect={other} with it")
            path = path.removesuffix(route)
    return f"{parts.scheme}://{parts.netloc}{path}"


@dataclass(frozen=True)
class EncoderConfig:
    """An encoder, and how its vectors are made."""

    model: str
    """Folder or hub name of a Hugging Face encoder."""
    family: Literal["e5", "bge", "contriever", "minilm"]
    """Whose conventions of pooling, normalisation and prefixes hold: an encoder used in another way is a worse one."""
    max_tokens: int = 256
    """Tokens of a passage or query that the encoder reads; 256 is what the published indexes were made with."""

    def __post_init__(self) -> None:
        at_least(self, 1, "max_tokens")


@dataclass(frozen=True)
class DenseConfig(EncoderConfig):
    """Vectors of an encoder, and how they are searched."""

    index: str = "Flat"
    """FAISS factory string, e.g. ``IVF4096,SQ8``, ``HNSW32``, ``IVF2048,RaBitQfs,Refine(SQ8)``; ``Flat`` is exact."""
    probes: int = 32
    """Inverted lists to visit (IVF), or size of the search queue (HNSW); more is slower and finds more."""
    vectors: Path | None = None
    """A FAISS index file made elsewhere over the same rows and encoder, such as Search-R1's ``e5_Flat.index``."""
    gpus: int = 0
    """GPUs that the index is spread over and searched on (flat and IVF); 0 searches on the CPU. Needs ``faiss-gpu``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0, "gpus")
        at_least(self, 1, "probes")


@dataclass(frozen=True)
class RerankConfig:
    """A model that reads the text of the first hits and puts them in a new order."""

    model: str
    """Folder or hub name of a Hugging Face sequence classifier with one output, e.g. a MiniLM trained on MS MARCO; or
    of a ColBERT."""
    kind: Literal["cross_encoder", "colbert"] = "cross_encoder"
    """``cross_encoder`` reads query and passage together; ``colbert`` compares their tokens, which is cheaper."""
    depth: int = 50
    """Hits that it judges for each query, and so the most that a search returns; cost grows with it."""
    max_tokens: int = 512
    """Tokens of query and passage together (of a passage alone, with a ColBERT); the longer of the two is cut. Encoders
    of the BERT family read 512."""

    def __post_init__(self) -> None:
        at_least(self, 1, "depth", "max_tokens")


@dataclass(frozen=True)
class ServerConfig:
    """What one server process serves, and where."""

    corpus: Path | None = None
    """Passages, one a line: ``{"id", "contents"}`` or ``{"id", "title", "text"}``; a ``backend.plugin`` may need
    none."""
    index: Path | None = None
    """Folder of a built index; without one, a small corpus is indexed in memory at start."""
    backend: Literal["bm25", "dense", "hybrid"] | Plugin = "bm25"
    """What ranks: words, vectors, or both by reciprocal rank fusion; BM25 needs no model and no GPU. Or
    that of others, by import path: ``backend.plugin=search_agent.retrieval.backends.web``, or ``opensearch``,
    ``qdrant``, ``lucene`` there, or a module of yours."""
    dense: DenseConfig | None = None
    """The encoder of a dense or hybrid back end (``dense.model=...``, ``dense.family=...``)."""
    filters: tuple[str, ...] = ()
    """Fields of the corpus (at the top of a row or under ``metadata``) by which a request's ``options`` may select
    passages; held in memory, 4 bytes a passage each."""
    rerank: RerankConfig | None = None
    """A model over the first hits (``rerank.model=...``); none by default: it costs a model run a passage."""
    host: str = "127.0.0.1"
    """Address to listen at; loopback, because everybody who can reach it may ask."""
    port: int = 8000
    """Port to listen at; 0 takes a free one. 8000 is what published clients of ``/retrieve`` expect."""
    hosts: tuple[str, ...] = ()
    """Further names (without port) under which a server without a token answers, e.g. that of a proxy before it."""
    topk: int = 3
    """Documents for a request that does not say how many; 3 is what Search-R1 and AutoRefine train with."""
    max_k: int = 1000
    """The most documents that a query may ask for; retrieval that is judged by recall asks for thousands."""
    max_queries: int = 65536
    """The most queries of one request; published training loops send a whole batch in one, 2,560 at their sizes."""
    threads: int = 0
    """Threads that search; 0 takes one for each core with BM25, one in all with a model, which has its own, and eight
    for a ``backend.plugin``, which they wait for."""
    announce: Path | None = None
    """File that receives ``{"url", "pid"}`` once the server is ready, for a process that started it."""
    shard: int = 0
    """Which of ``shards`` consecutive ranges of the corpus this server searches, from 0."""
    shards: int = 1
    """How many servers share the corpus; scores use the statistics of the whole, so merging is exact."""
    stop_with_stdin: bool = False
    """Stop when standard input closes: so a server dies with the process that holds the other end."""

    def __post_init__(self) -> None:
        within(self, 0, 65535, "port")
        at_least(self, 0, "threads")
        at_least(self, 1, "topk", "max_k", "max_queries")
        self._check_backend()
        if not 0 <= self.shard < self.shards:
            raise UserError(f"shard: {self.shard} of {self.shards} does not exist; give 0 to shards - 1")
        if self.topk > self.max_k:
            raise UserError(f"topk: {self.topk} is above max_k={self.max_k}; raise max_k")

    def _check_backend(self) -> None:
        if self.corpus is None and not isinstance(self.backend, Plugin):
            raise UserError("corpus: missing; write corpus=FILE, or backend.plugin=MODULE for one with passages")
        if self.filters and isinstance(self.backend, Plugin):
            raise UserError("filters: only back ends of ours have them; remove filters=")
        if (self.dense is not None) != (self.backend in ("dense", "hybrid")):
            name = self.backend.module if isinstance(self.backend, Plugin) else self.backend
            needs = "has no" if self.dense is not None else "needs an"
            raise UserError(f"dense: backend={name} {needs} encoder; see dense.model")
        if self.shards > 1 and (self.backend != "bm25" or self.rerank is not None):
            raise UserError("shards: only backend=bm25 without rerank can be cut; start several replicas instead")
