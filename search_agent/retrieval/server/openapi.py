"""The OpenAPI description of every route, with the bounds that ``wire`` enforces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from search_agent.retrieval.server.wire import DEFAULT_TOP_N, Bounds

Json = dict[str, Any]

TEXT: Json = {"type": "string"}
NUMBER: Json = {"type": "number"}
FLAG: Json = {"type": ["boolean", "null"], "default": False}
DOCUMENT: Json = {
    "type": "object",
    "required": ["id"],
    "properties": {"id": TEXT, "contents": {"type": "string", "description": '"Title"\\ntext'}},
}
DOCUMENTS: Json = {"type": "array", "items": DOCUMENT}
ERROR: Json = {"type": "object", "required": ["detail"], "properties": {"detail": TEXT}}
ERRORS = {
    400: "the client went away",
    401: "a bearer token is needed",
    403: "another host name",
    408: "half sent",
    413: "too large",
    422: "not understood",
    429: "the queue is full; see Retry-After",
    503: "loading or stopping; see Retry-After",
}
ASKED = (401, 403, 422, 429, 503)


def document(bounds: Bounds, filters: Sequence[str] = ()) -> Json:
    """An OpenAPI 3.1 document of a server with these bounds and these fields to select by."""
    options = [f"{name}{end}" for name in filters for end in ("", ".from", ".to")]
    values: Json = {key: {"type": ["string", "number"]} for key in options}
    selected: Json = {"type": ["object", "null"], "properties": values, "additionalProperties": False}
    k = {"type": ["integer", "null"], "minimum": 1, "maximum": bounds.max_k}
    items = {"anyOf": [TEXT, {}]}  # one that is no string fails alone
    queries = {"type": "array", "items": items, "maxItems": bounds.max_queries}
    scored = {"type": "object", "properties": {"document": DOCUMENT, "score": NUMBER}}
    whole = {"type": "array", "items": {"anyOf": [scored, DOCUMENT]}}
    columns = _object([], ids={"type": "array", "items": TEXT}, scores={"type": "array", "items": NUMBER})
    found = {"type": "array", "items": {"anyOf": [whole, columns]}}
    errors: Json = {"type": "object", "additionalProperties": TEXT}
    refused: Json = {"type": "array", "items": {"type": "integer"}}
    retrieved = _object(["result"], result=found, errors=errors, refused=refused)
    rest = {"top_n": {**k, "default": DEFAULT_TOP_N}, "return_score": FLAG}
    retrieve = _object(
        ["queries"],
        queries=queries,
        topk=k,
        return_scores=FLAG,
        ids_only=FLAG,
        options=selected,
    )
    hit = _object([], text=TEXT, pid=TEXT, rank={"type": "integer"}, score=NUMBER, prob=NUMBER)
    ranked = _object([], query=TEXT, topk={"type": "array", "items": hit})
    return {
        "openapi": "3.1.0",
        "info": {"title": "Retrieval", "version": "1", "description": "Three dialects over one back end."},
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "paths": {
            "/retrieve": _post("Search-R1 and AutoRefine", retrieve, retrieved),
            "/search": _post("ReSearch, one query", _object(["query"], query=TEXT, **rest), _or_scored(DOCUMENTS)),
            "/batch_search": _post(
                "ReSearch, several queries",
                _object(["query"], query=queries, **rest),
                _or_scored({"type": "array", "items": DOCUMENTS}),
            ),
            "/api/search": {
                "get": {
                    "summary": "ColBERT and ExSearch",
                    "security": [{}, {"token": []}],
                    "parameters": [
                        {"name": "query", "in": "query", "required": True, "schema": TEXT},
                        {"name": "k", "in": "query", "schema": {**rest["top_n"], "type": "integer"}},
                    ],
                    "responses": _responses(ranked, ASKED),
                }
            },
            "/health": _get("The process is alive"),
            "/ready": _get("The index is open and warm", 503),
            "/info": _get("What is served: corpus, back end, filters, fingerprint", 401, 422, 503),
            "/metrics": _get("Counters for Prometheus", 401, media="text/plain"),
            "/openapi.json": _get("This document", 401),
            "/": _get("A search page", media="text/html"),
        },
    }


def _object(required: list[str], **properties: Json) -> Json:
    return {"type": "object", "required": required, "properties": properties}


def _or_scored(documents: Json) -> Json:
    """Documents, or a pair of documents and scores."""
    return {"anyOf": [documents, {"type": "array", "minItems": 2, "maxItems": 2}]}


def _post(summary: str, request: Json, reply: Json) -> Json:
    body = {"required": True, "content": {"application/json": {"schema": request}}}
    answers = _responses(reply, (400, 408, 413, *ASKED))
    return {"post": {"summary": summary, "security": [{}, {"token": []}], "requestBody": body, "responses": answers}}


def _get(summary: str, *errors: int, media: str = "application/json") -> Json:
    return {"get": {"summary": summary, "responses": _responses({}, (403, *errors), media)}}


def _responses(reply: Json, errors: tuple[int, ...], media: str = "application/json") -> Json:
    told = {"application/json": {"schema": ERROR}}
    refused = {str(status): {"description": ERRORS[status], "content": told} for status in errors}
    return {"200": {"description": "the answer", "content": {media: {"schema": reply}}}, **refused}
