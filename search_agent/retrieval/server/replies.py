"""Replies as bytes, in the dialects that ``wire`` lists."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from search_agent.retrieval.backends.backend import Hit
from search_agent.retrieval.index.documents import Documents
from search_agent.retrieval.server.wire import BadRequest, Request
from search_agent.retrieval.types import split_contents


@dataclass(frozen=True, slots=True)
class Answer:
    """What one query got: hits, or the reason why there are none."""

    hits: Sequence[Hit] = ()
    error: str | None = None
    status: int = 200
    """The HTTP status for a dialect that asks one query at a time."""
    refused: bool = False
    """Whether the query itself is at fault."""


def retrieve(request: Request, answers: Sequence[Answer], documents: Documents) -> bytes:
    """The ``/retrieve`` reply; queries that failed have an empty list, and their reasons stand under ``errors``."""
    if request.ids_only:
        rows = [_columns(answer.hits, documents) for answer in answers]
    else:
        rows = [_hits(answer.hits, documents.of, request.with_scores) for answer in answers]
    errors = {str(number): answer.error for number, answer in enumerate(answers) if answer.error is not None}
    refused = [number for number, answer in enumerate(answers) if answer.refused]
    tail = b',"errors":' + orjson.dumps(errors) if errors else b""
    tail += b',"refused":' + orjson.dumps(refused) if refused else b""
    return b'{"result":[' + b",".join(rows) + b"]" + tail + b"}"


def _columns(hits: Sequence[Hit], documents: Documents) -> bytes:
    """Ids and scores as two lists: a ranking of a thousand is read in one go."""
    ids = b",".join([documents.id_of(hit) for hit in hits])
    return b'{"ids":[%b],"scores":%b}' % (ids, orjson.dumps([hit.score for hit in hits]))


def batch_search(request: Request, answers: Sequence[Answer], documents: Documents) -> bytes:
    """The ``/batch_search`` reply."""
    rows = b"[" + b",".join(_hits(answer.hits, documents.of, False) for answer in answers) + b"]"
    if not request.with_scores:
        return rows
    scores = [[hit.score for hit in answer.hits] for answer in answers]
    return b"[" + rows + b"," + orjson.dumps(scores) + b"]"


def search(request: Request, answers: Sequence[Answer], documents: Documents) -> bytes:
    """The ``/search`` reply. Raises BadRequest if the query failed."""
    hits = _only(answers)
    rows = _hits(hits, documents.of, False)
    return b"[" + rows + b"," + orjson.dumps([hit.score for hit in hits]) + b"]" if request.with_scores else rows


def api_search(request: Request, answers: Sequence[Answer], documents: Documents) -> bytes:
    """The ``/api/search`` reply. Raises BadRequest if the query failed."""
    hits = _only(answers)
    weights = [math.exp(hit.score - hits[0].score) for hit in hits]  # the best is first: no power above 1
    rows = [
        {**_piped(orjson.loads(documents.of(hit))), "rank": rank, "score": hit.score, "prob": weight / sum(weights)}
        for rank, (hit, weight) in enumerate(zip(hits, weights, strict=True), 1)
    ]
    return orjson.dumps({"query": request.queries[0], "topk": rows})


def _only(answers: Sequence[Answer]) -> Sequence[Hit]:
    (answer,) = answers
    if answer.error is not None:
        raise BadRequest(answer.status, answer.error)
    return answer.hits


def _piped(row: Mapping[str, Any]) -> dict[str, Any]:
    """Clients split ``title | text`` at the first bar, so a title must not hold one."""
    title, text = split_contents(row["contents"])
    return {"text": f"{title.replace('|', '/')} | {text}", "pid": row["id"]}


def _hits(hits: Sequence[Hit], show: Callable[[Hit], bytes], with_scores: bool) -> bytes:
    if with_scores:
        rows = [b'{"document":%b,"score":%b}' % (show(hit), orjson.dumps(hit.score)) for hit in hits]
    else:
        rows = [show(hit) for hit in hits]
    return b"[" + b",".join(rows) + b"]"
