"""Requests as bytes, apart from any server: what clients of published retrievers send, and what ``replies`` gives them.

    POST /retrieve      {"queries": [...], "topk": 3, "return_scores": true}              Search-R1, AutoRefine, ours
                        -> {"result": [[{"document": {"id", "contents"}, "score"}, ...], ...]}
                        with "ids_only": true -> {"result": [{"ids": [...], "scores": [...]}, ...]};
                        "options" is a flat object of filters
    POST /search        {"query": "...", "top_n": 10, "return_score": false}              ReSearch, ReCall, FlashRAG
                        -> [{"id", "contents"}, ...] or [[document, ...], [score, ...]]
    POST /batch_search  the same with a list of queries and a list of each
    GET  /api/search?query=...&k=10                                                       ColBERT, ExSearch
                        -> {"query", "topk": [{"text": "title | text", "pid", "rank", "score", "prob"}, ...]}

An empty query, or one that matches nothing, has no documents; an item of a batch that is no string, or fails, has none
either, and ``/retrieve`` gives the reason under ``errors``, and under ``refused`` the numbers of queries that are at
fault themselves. A model may have written the query: one that is too long is cut, and half a surrogate pair, which
UTF-8 does not have, is replaced.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

import orjson

MAX_QUERY_BYTES = 8192
"""Of UTF-8; a longer query is cut here."""
MAX_HITS = 2**20
"""Documents that all queries of a request may ask for together, which bounds a reply."""
MAX_OPTIONS = 32
DEFAULT_TOP_N = 10


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one server allows in a request."""

    default_k: int = 3
    """For a ``/retrieve`` that does not say."""
    max_k: int = 1000
    max_queries: int = 65536


class BadRequest(Exception):
    """A request that cannot be answered: an HTTP status and one line."""

    def __init__(self, status: int, detail: str, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        super().__init__(detail)
        self.status = status
        self.headers = headers


@dataclass(frozen=True, slots=True)
class Request:
    """What any dialect asks for."""

    queries: list[str | None]
    """As they are searched; None where an item was no string."""
    k: int
    with_scores: bool
    ids_only: bool = False
    options: str = ""
    """A JSON object, its keys sorted; empty for none."""


def retrieve(body: bytes, bounds: Bounds) -> Request:
    """The request in a ``/retrieve`` body. Raises BadRequest."""
    fields = _object(body)
    k = _k(fields, "topk", bounds.default_k, bounds)
    queries = _queries(fields, "queries", k, bounds)
    return Request(queries, k, _flag(fields, "return_scores"), _flag(fields, "ids_only"), options_of(fields))


def batch_search(body: bytes, bounds: Bounds) -> Request:
    """The request in a ``/batch_search`` body. Raises BadRequest."""
    fields = _object(body)
    k = _k(fields, "top_n", DEFAULT_TOP_N, bounds)
    return Request(_queries(fields, "query", k, bounds), k, _flag(fields, "return_score"))


def search(body: bytes, bounds: Bounds) -> Request:
    """The request in a ``/search`` body. Raises BadRequest."""
    fields = _object(body)
    query = fields.get("query")
    if not isinstance(query, str):
        raise BadRequest(422, "query: a string is needed")
    return Request([_sound(query)], _k(fields, "top_n", DEFAULT_TOP_N, bounds), _flag(fields, "return_score"))


def api_search(query_string: bytes, bounds: Bounds) -> Request:
    """The request in the query string of ``/api/search``. Raises BadRequest."""
    fields = _query_string(query_string)
    k = fields.get("k", [str(DEFAULT_TOP_N)])[-1]
    if "query" not in fields:
        raise BadRequest(422, "query: missing; write /api/search?query=...&k=10")
    is_number = k.isascii() and k.isdigit() and len(k) <= 6
    number = _k({"k": int(k) if is_number else k}, "k", DEFAULT_TOP_N, bounds)
    return Request([_sound(fields["query"][-1])], number, True)


def info(query_string: bytes) -> str:
    """The options in the query string of ``/info``, as ``options_of`` gives them. Raises BadRequest."""
    fields = _query_string(query_string)
    return options_of({"options": _object(fields["options"][-1].encode())}) if "options" in fields else ""


def options_of(fields: Mapping[str, Any]) -> str:
    """The ``options`` of a request, a flat object, as JSON with sorted keys. Raises BadRequest."""
    options = fields.get("options")
    if options is None:
        return ""
    if not isinstance(options, dict) or not all(isinstance(value, str | int | float) for value in options.values()):
        raise BadRequest(422, "options: an object of texts, numbers and flags is needed")
    if len(options) > MAX_OPTIONS:
        raise BadRequest(422, f"options: {len(options)} of them, at most {MAX_OPTIONS}")
    try:
        return orjson.dumps(options, option=orjson.OPT_SORT_KEYS).decode() if options else ""
    except (TypeError, ValueError) as error:  # half a surrogate pair, a number of more than 64 bits
        raise BadRequest(422, f"options: {error}") from error


def _query_string(data: bytes) -> dict[str, list[str]]:
    try:
        return parse_qs(data.decode("ascii"), keep_blank_values=True, errors="replace", max_num_fields=16)
    except ValueError as error:
        raise BadRequest(422, f"the query string cannot be read: {error}") from error


def _object(body: bytes) -> dict[str, Any]:
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        fields = _with_half_pairs(body, error)
    if not isinstance(fields, dict):
        raise BadRequest(422, "the body is not a JSON object")
    return fields


def _with_half_pairs(body: bytes, error: orjson.JSONDecodeError) -> Any:
    """What JSON allows and orjson does not: escapes that are half a surrogate pair. Raises BadRequest."""
    try:
        if b"\\u" in body:
            return json.loads(body.decode())
    except (ValueError, RecursionError):
        pass
    raise BadRequest(422, f"the body is not JSON: {error}") from error


def _queries(fields: Mapping[str, Any], key: str, k: int, bounds: Bounds) -> list[str | None]:
    queries = fields.get(key)
    if not isinstance(queries, list):
        raise BadRequest(422, f"{key}: a list of strings is needed")
    if len(queries) > bounds.max_queries:
        raise BadRequest(413, f"{key}: {len(queries)} queries, at most {bounds.max_queries} a request (max_queries)")
    if len(queries) * k > max(MAX_HITS, bounds.max_k):
        raise BadRequest(413, f"{key}: {len(queries)} times {k} documents, at most {MAX_HITS} a request")
    return [_sound(query) if isinstance(query, str) else None for query in queries]


def _sound(query: str) -> str:
    """A query as it can be searched, whatever was written: valid and bounded."""
    return query.encode("utf-8", "replace")[:MAX_QUERY_BYTES].decode("utf-8", "ignore")


def _k(fields: Mapping[str, Any], key: str, default_k: int, bounds: Bounds) -> int:
    k = fields.get(key)
    if k is None:
        return default_k
    if isinstance(k, float) and k.is_integer():
        k = int(k)  # 3.0 is an integer of JSON
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= bounds.max_k:
        shown = str(k)[:40] if isinstance(k, str | int | float) else type(k).__name__
        raise BadRequest(422, f"{key}: a whole number from 1 to {bounds.max_k} is needed, not {shown!r}")
    return k


def _flag(fields: Mapping[str, Any], key: str) -> bool:
    flag = fields.get(key, False)
    if not isinstance(flag, bool | None):
        raise BadRequest(422, f"{key}: true or false is needed")
    return bool(flag)
