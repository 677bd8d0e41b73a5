"""What the client sends and understands, in each dialect that a server may speak."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

from search_agent.retrieval.client.layout import merge
from search_agent.retrieval.client.transport import Transport
from search_agent.retrieval.types import Document, split_contents
from verl.errors import InfrastructureError

Documents = tuple[Document, ...]


def clean(query: str, max_chars: int) -> str:
    """The query as it is sent: one spacing, no lone surrogates (JSON has none), at most ``max_chars`` characters."""
    return " ".join(query.split())[:max_chars].encode("utf-8", "replace").decode("utf-8")


async def ask(
    transport: Transport, dialect: str, queries: Sequence[str], k: int
) -> list[Documents | InfrastructureError]:
    """What one server, or one group of replicas, says to each query. Raises InfrastructureError if it says nothing."""
    if dialect == "retrieve":
        body = {"queries": list(queries), "topk": k, "return_scores": True}
        return parse_reply(await transport.request("POST", "/retrieve", body), len(queries))
    if dialect == "batch_search":
        body = {"query": list(queries), "top_n": k, "return_score": True}
        return parse_reply(_paired(await transport.request("POST", "/batch_search", body)), len(queries))
    paths = [f"/api/search?{urlencode({'query': query, 'k': k})}" for query in queries]
    replies = await asyncio.gather(*[transport.request("GET", path) for path in paths], return_exceptions=True)
    return [_piped(reply) for reply in replies]


def _paired(reply: Any) -> Any:
    """A ``/batch_search`` reply in the form of ``/retrieve``. Raises InfrastructureError if it is no such reply."""
    try:
        documents, scores = reply
        pairs = [zip(row, values, strict=True) for row, values in zip(documents, scores, strict=True)]
        return {"result": [[{"document": document, "score": score} for document, score in row] for row in pairs]}
    except (TypeError, ValueError) as error:
        raise InfrastructureError(f"not a /batch_search reply ({error}): {str(reply)[:200]}") from error


def _piped(reply: Any) -> Documents | InfrastructureError:
    """The documents of one ``/api/search`` reply, whose text is ``title | text``."""
    if isinstance(reply, BaseException):
        return reply if isinstance(reply, InfrastructureError) else InfrastructureError(f"/api/search: {reply!r}")
    try:
        rows = [(row["pid"], row["text"].partition("|"), row["score"]) for row in reply["topk"]]
        return tuple(
            Document(str(pid), title.strip() if bar else "", (text if bar else title).strip(), float(score))
            for pid, (title, bar, text), score in rows
        )
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        return InfrastructureError(f"not an /api/search reply ({error!r}): {str(reply)[:200]}")


def merge_replies(parts: Sequence[Documents | InfrastructureError], k: int) -> Documents | InfrastructureError:
    """The k best of what each shard found for one query; a failure if any shard failed on it."""
    for part in parts:
        if isinstance(part, InfrastructureError):
            return part
    return merge([part for part in parts if not isinstance(part, InfrastructureError)], k)


def parse_reply(reply: Any, num_queries: int) -> list[Documents | InfrastructureError]:
    """The documents of each query in a ``/retrieve`` reply, or why the server failed on that query.

    Raises InfrastructureError if it is no such reply.
    """
    try:
        rows, errors = reply["result"], dict(reply.get("errors", {}))
        answers: list[Documents | InfrastructureError] = [tuple(_document(hit) for hit in row) for row in rows]
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        kind = type(error).__name__
        raise InfrastructureError(f"not a /retrieve reply ({kind}: {error}): {str(reply)[:200]}") from error
    if len(answers) != num_queries:
        raise InfrastructureError(f"the server answered {len(answers)} queries, {num_queries} were asked")
    for number, message in errors.items():
        answers[int(number)] = InfrastructureError(f"the server could not answer the query: {message}")
    return answers


def _document(hit: Any) -> Document:
    fields = hit["document"]
    if "contents" in fields:
        title, text = split_contents(fields["contents"])
    else:
        title, text = fields.get("title", ""), fields["text"]
    return Document(str(fields["id"]), title, text, float(hit["score"]))
