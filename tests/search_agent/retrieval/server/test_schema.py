"""The served description is true, and nothing that a client can send makes the server fail."""

from __future__ import annotations

import asyncio
import warnings
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from search_agent.retrieval.backends.bm25 import Bm25
from search_agent.retrieval.index.corpus import Passage
from search_agent.retrieval.index.documents import Documents
from search_agent.retrieval.index.postings import build_postings
from search_agent.retrieval.server.app import App
from search_agent.retrieval.server.loading import Served
from search_agent.retrieval.server.openapi import document
from search_agent.retrieval.server.wire import Bounds

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    schemathesis = pytest.importorskip("schemathesis")
    from schemathesis.specs.openapi.checks import negative_data_rejection

PASSAGES = [Passage("7", '"Apple"\na red apple'), Passage("8", '"Sky"\nblue 0'), Passage("9", "null true")]


class Scoped:
    """The application as a test client wants it: one that answers the ASGI lifespan, too."""

    def __init__(self) -> None:
        backend = Bm25(build_postings(passage.contents for passage in PASSAGES))
        served = Served(Documents.from_rows(p.to_json() for p in PASSAGES), backend, {"documents": 3})
        self._served, self._app = served, App(Bounds(), 1)
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for event in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{event}.complete"})
            return
        if self._loop is not asyncio.get_running_loop():  # a test client may use a loop for each request
            self._app.close()
            self._app.start(self._served)
            self._loop = asyncio.get_running_loop()
        await self._app(scope, receive, send)


schema = schemathesis.openapi.from_dict(document(Bounds()))
schema.app = Scoped()


@schema.parametrize()
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_no_request_makes_the_server_fail(case: Any) -> None:
    response = case.call()
    assert response.status_code < 500, response.text
    # That check does not know 413 as a refusal; test_retrieval_app pins which status a bad request gets.
    case.validate_response(response, excluded_checks=[negative_data_rejection])
