"""What the server did, for Prometheus."""

from __future__ import annotations

from functools import lru_cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from search_agent.retrieval.server.batcher import Batcher
from search_agent.retrieval.stats import LATENCY_BOUNDS_S

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "retrieval_requests", "Requests answered", ["route", "status"], registry=self._registry
        )
        self._queries = Counter("retrieval_queries", "Queries asked", registry=self._registry)
        self._seconds = Histogram(
            "retrieval_request_seconds",
            "From request to reply",
            ["route"],
            buckets=LATENCY_BOUNDS_S,
            registry=self._registry,
        )
        self._batches = Gauge("retrieval_backend_batches", "Calls of the back end", registry=self._registry)
        self._computed = Gauge("retrieval_backend_queries", "Queries that it was asked", registry=self._registry)
        self._waiting = Gauge(
            "retrieval_waiting_queries", "Queries no search thread has taken", registry=self._registry
        )
        self._ready = Gauge("retrieval_ready", "1 once the index is open", registry=self._registry)

        self._request_counter = lru_cache(lambda route, status: self._requests.labels(route, str(status)))
        self._route_seconds = lru_cache(lambda route: self._seconds.labels(route))

    def count_request(self, route: str, status: int, seconds: float) -> None:
        """Count one reply."""
        self._request_counter(route, status).inc()
        self._route_seconds(route).observe(seconds)

    def count_queries(self, number: int) -> None:
        """Count the queries of one request."""
        self._queries.inc(number)

    def render(self, batcher: Batcher | None) -> bytes:
        """The text that Prometheus scrapes."""
        self._ready.set(batcher is not None)
        if batcher is not None:
            self._batches.set(batcher.batches)
            self._computed.set(batcher.computed)
            self._waiting.set(batcher.waiting)
        return generate_latest(self._registry)
