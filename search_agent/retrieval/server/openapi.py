"""The OpenAPI description of every route, with the bounds that ``wire`` enforces."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from search_agent.retrieval.server.wire import DEFAULT_TOP_N, MAX_K, MAX_QUERIES

Json = dict[str, Any]

_QUERY: Json = {"type": "string"}
_QUERIES: Json = {"type": "array", "items": _QUERY, "maxItems": MAX_QUERIES}
_K: Json = {"type": ["integer", "null"], "minimum": 1, "maximum": MAX_K}
_FLAG: Json = {"type": ["boolean", "null"], "default": False}
_DOCUMENT: Json = {
    "type": "object",
    "required": ["id", "contents"],
    "properties": {"id": {"type": "string"}, "contents": {"type": "string", "description": '"Title"\\ntext'}},
}
_DOCUMENTS: Json = {"type": "array", "items": _DOCUMENT}
_ERROR: Json = {"type": "object", "required": ["detail"], "properties": {"detail": {"type": "string"}}}


def document() -> Json:
    """An OpenAPI 3.1 document."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "Retrieval", "version": "1", "description": "Three dialects over one back end."},
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "paths": {
            "/retrieve": {"post": _post("Search-R1 and AutoRefine", _retrieve_request(), _retrieve_reply())},
            "/search": {
                "post": _post("ReSearch and FlashRAG, one query", _search_request(_QUERY), _either(_DOCUMENTS))
            },
            "/batch_search": {
                "post": _post(
                    "ReSearch and FlashRAG, several queries",
                    _search_request(_QUERIES),
                    _either({"type": "array", "items": _DOCUMENTS}),
                )
            },
            "/api/search": {"get": _api_search()},
            "/health": {"get": _get("The process is alive")},
            "/ready": {"get": _get("The index is open and warm", also=(503,))},
            "/info": {"get": _get("What is served: corpus, back end, settings, fingerprint", also=(401, 503))},
            "/metrics": {"get": _get("Counters for Prometheus", "text/plain", also=(401,))},
            "/openapi.json": {"get": _get("This document", also=(401,))},
            "/": {"get": _get("A search page", "text/html")},
        },
    }


def _retrieve_request() -> Json:
    properties = {"queries": _QUERIES, "topk": _K, "return_scores": _FLAG}
    return {"type": "object", "required": ["queries"], "properties": properties}


def _retrieve_reply() -> Json:
    hit = {"type": "object", "properties": {"document": _DOCUMENT, "score": {"type": "number"}}}
    rows = {"type": "array", "items": {"type": "array", "items": {"anyOf": [hit, _DOCUMENT]}}}
    errors = {"type": "object", "additionalProperties": {"type": "string"}}
    return {"type": "object", "required": ["result"], "properties": {"result": rows, "errors": errors}}


def _search_request(query: Json) -> Json:
    properties = {"query": query, "top_n": {**_K, "default": DEFAULT_TOP_N}, "return_score": _FLAG}
    return {"type": "object", "required": ["query"], "properties": properties}


def _either(documents: Json) -> Json:
    """Documents, or a pair of documents and scores."""
    return {"anyOf": [documents, {"type": "array", "minItems": 2, "maxItems": 2}]}


def _api_search() -> Json:
    number = {"type": "number"}
    hit = {
        "type": "object",
        "properties": {"text": _QUERY, "pid": _QUERY, "rank": {"type": "integer"}, "score": number, "prob": number},
    }
    reply = {"type": "object", "properties": {"query": _QUERY, "topk": {"type": "array", "items": hit}}}
    k = {"type": "integer", "minimum": 1, "maximum": MAX_K, "default": DEFAULT_TOP_N}
    return {
        "summary": "ColBERT and ExSearch",
        "security": [{}, {"token": []}],
        "parameters": [
            {"name": "query", "in": "query", "required": True, "schema": _QUERY},
            {"name": "k", "in": "query", "schema": k},
        ],
        "responses": _responses(reply, (401, 422, 429, 503)),
    }


def _post(summary: str, request: Json, reply: Json) -> Json:
    return {
        "summary": summary,
        "security": [{}, {"token": []}],
        "requestBody": {"required": True, "content": {"application/json": {"schema": request}}},
        "responses": _responses(reply, (400, 401, 413, 422, 429, 503)),
    }


def _get(summary: str, media: str = "application/json", also: tuple[int, ...] = ()) -> Json:
    return {"summary": summary, "responses": _responses({}, also, media)}


def _responses(reply: Mapping[str, Any], errors: tuple[int, ...], media: str = "application/json") -> Json:
    descriptions = {
        400: "the client went away",
        401: "a bearer token is needed",
        413: "too large",
        422: "not understood",
        429: "the queue is full; see Retry-After",
        503: "loading or stopping; see Retry-After",
    }
    listed = {
        str(status): {"description": descriptions[status], "content": {"application/json": {"schema": _ERROR}}}
        for status in errors
    }
    return {"200": {"description": "the answer", "content": {media: {"schema": dict(reply)}}}, **listed}
