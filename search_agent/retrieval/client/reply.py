"""What the client sends and understands, in each dialect that a server may speak.

Whatever a server says ends as documents, as no documents, or as a failure: nothing of it is trusted to be of a type.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, TypeVar
from urllib.parse import urlencode

import orjson

from search_agent.retrieval.client.layout import merge
from search_agent.retrieval.client.transport import Refused, Transport
from search_agent.retrieval.http import excerpt
from search_agent.retrieval.types import Document, QueryRefused, split_contents
from verl.errors import InfrastructureError

Documents = tuple[Document, ...]
Failure = InfrastructureError | QueryRefused
"""Why one query has no documents: it could not be answered, or not be read."""
T = TypeVar("T")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


@dataclass(frozen=True, slots=True)
class Terms:
    """What a search asks beside its query; queries on the same terms may share a request."""

    k: int
    options: str = ""
    """Options of the server (dates, filters), as JSON with sorted keys; empty for none."""
    ids_only: bool = False
    """Whether documents come without title and text: a ranking of a thousand is then a small reply."""

    def body(self, queries: Sequence[str]) -> dict[str, Any]:
        """What ``POST /retrieve`` carries."""
        body = {"queries": list(queries), "topk": self.k, "return_scores": True}
        if self.options:
            body["options"] = orjson.Fragment(self.options)
        return {**body, "ids_only": True} if self.ids_only else body


def clean(query: str, max_bytes: int) -> str:
    """The query as it is sent: one spacing, no control characters, no lone surrogates (JSON has none), bounded."""
    words = " ".join(_CONTROL.sub(" ", query).split())
    return words.encode("utf-8", "replace")[:max_bytes].decode("utf-8", "ignore").rstrip()


async def ask(transport: Transport, dialect: str, queries: Sequence[str], terms: Terms) -> list[Documents | Failure]:
    """What one server, or one group of replicas, says to each query. Raises InfrastructureError if it says nothing.

    A request that the server refuses is sent again query by query, so that one which it cannot bear fails alone.
    """
    if dialect == "api_search" or not queries:
        paths = [f"/api/search?{urlencode({'query': query, 'k': terms.k})}" for query in queries]
        replies = await asyncio.gather(*[transport.request("GET", path) for path in paths], return_exceptions=True)
        return [_piped(reply) for reply in map(_or_failure, replies)]
    try:
        if dialect == "batch_search":
            body = {"query": list(queries), "top_n": terms.k, "return_score": True}
            return parse_reply(_paired(await transport.request("POST", "/batch_search", body)), len(queries))
        return parse_reply(await transport.request("POST", "/retrieve", terms.body(queries)), len(queries))
    except Refused:
        if len(queries) == 1:
            raise
        alone = [ask(transport, dialect, [query], terms) for query in queries]
        answers = [_or_failure(answer) for answer in await asyncio.gather(*alone, return_exceptions=True)]
        return [answer if isinstance(answer, InfrastructureError) else answer[0] for answer in answers]


def merge_replies(parts: Sequence[Documents | Failure], k: int) -> Documents | Failure:
    """The k best of what each shard found for one query; a failure if any shard failed on it."""
    for part in parts:
        if isinstance(part, Failure):
            return part
    return merge([part for part in parts if not isinstance(part, Failure)], k)


def parse_reply(reply: Any, num_queries: int) -> list[Documents | Failure]:
    """The documents of each query in a ``/retrieve`` reply, or why the server failed on that query.

    Raises InfrastructureError if it is no such reply.
    """
    rows = reply.get("result") if isinstance(reply, Mapping) else None
    if not isinstance(rows, list):
        raise _not_a_reply("/retrieve", reply)
    if len(rows) != num_queries:
        raise InfrastructureError(f"the server answered {len(rows)} queries, {num_queries} were asked")
    errors = reply.get("errors") or {}
    if not isinstance(errors, Mapping) or not errors.keys() <= set(map(str, range(num_queries))):
        raise _not_a_reply("/retrieve", errors)
    refused = reply.get("refused")
    at_fault = refused if isinstance(refused, list) else []
    failed: dict[int, Failure] = {
        number: QueryRefused(_shown(why))
        if number in at_fault
        else InfrastructureError(f"the server could not answer the query: {_shown(why)}")
        for number, why in ((int(key), why) for key, why in errors.items())
    }
    return [failed.get(number) or _documents(row) for number, row in enumerate(rows)]


def _documents(row: Any) -> Documents | InfrastructureError:
    try:
        if isinstance(row, Mapping):
            return _ranking(row["ids"], row["scores"])
        return tuple(_document(hit["document"], hit["score"]) for hit in _list(row))
    except (TypeError, KeyError, ValueError, AttributeError, OverflowError):
        return _not_a_reply("/retrieve", row)


def _ranking(ids: Any, scores: Any) -> Documents:
    """Documents of ids alone. Raises an error of some kind if the columns are none."""
    numbers = [float(score) for score in _list(scores)]
    if len(_list(ids)) != len(numbers) or not all(type(one) is str for one in ids):
        raise ValueError
    if not all(map(math.isfinite, numbers)):
        raise ValueError
    return tuple(map(Document, ids, repeat(""), repeat(""), numbers))


def _document(fields: Any, score: Any) -> Document:
    """Raises an error of some kind if it is none. A document may have neither title nor text where ids were asked."""
    number = float(score)
    if not math.isfinite(number) or not isinstance(fields["id"], str | int):
        raise ValueError
    if "contents" in fields:
        title, text = split_contents(_text(fields["contents"]))
    else:
        title, text = _text(fields.get("title") or ""), _text(fields.get("text", ""))
    return Document(str(fields["id"]), title, text, number)


def _paired(reply: Any) -> Any:
    """A ``/batch_search`` reply in the form of ``/retrieve``. Raises InfrastructureError if it is no such reply."""
    try:
        documents, scores = _list(reply)
        pairs = [zip(_list(row), _list(values), strict=True) for row, values in zip(documents, scores, strict=True)]
        return {"result": [[{"document": document, "score": score} for document, score in row] for row in pairs]}
    except (TypeError, ValueError) as error:
        raise _not_a_reply("/batch_search", reply) from error


def _piped(reply: Any) -> Documents | InfrastructureError:
    """The documents of one ``/api/search`` reply, whose text is ``title | text``."""
    if isinstance(reply, InfrastructureError):
        return reply
    try:
        return tuple(_document(_unpiped(row), row["score"]) for row in _list(reply["topk"]))
    except (TypeError, KeyError, ValueError, AttributeError, OverflowError):
        return _not_a_reply("/api/search", reply)


def _unpiped(row: Any) -> dict[str, Any]:
    title, bar, text = _text(row["text"]).partition("|")
    return {"id": row["pid"], "title": title.strip() if bar else "", "text": (text if bar else title).strip()}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError
    return value


def _or_failure(outcome: T | BaseException) -> T | InfrastructureError:
    """What ``gather`` collected. Raises what is no failure of the server: a cancellation, another corpus."""
    if isinstance(outcome, InfrastructureError):
        return outcome
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


def _not_a_reply(route: str, said: Any) -> InfrastructureError:
    return InfrastructureError(f"not a {route} reply: {_shown(said)}")


def _shown(said: Any) -> str:
    return excerpt(said if isinstance(said, str) else repr(said))
