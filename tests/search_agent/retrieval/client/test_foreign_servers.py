"""Whatever a foreign server says ends as documents, as no documents or as a failure: never as an error of the run."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search_agent.retrieval.client.client import RetrievalClient
from search_agent.retrieval.client.layout import arrange, manifest_of
from search_agent.retrieval.client.reply import Failure, parse_reply
from search_agent.retrieval.config import ClientConfig
from search_agent.retrieval.types import Document, SearchResult
from verl.errors import InfrastructureError, UserError

scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=8)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner)
)


def some(keys: str, values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A dict with some of the keys."""
    return st.fixed_dictionaries({}, optional=dict.fromkeys(keys.split(), values))


text = st.text(max_size=5) | anything
document = some("id title text contents", text) | anything
hit = st.fixed_dictionaries({"document": document, "score": st.floats(-9, 9) | anything}) | anything
rows = st.lists(st.lists(hit, max_size=3) | anything, min_size=1, max_size=3)
errors = st.dictionaries(st.sampled_from(["0", "1", "-1", "99", "x", ""]), text, max_size=2) | anything
near_replies = st.fixed_dictionaries({"result": rows | anything}, optional={"errors": errors})
paired = st.lists(rows | anything, min_size=2, max_size=2) | anything
piped = st.fixed_dictionaries({"topk": st.lists(some("text pid score", text) | anything, max_size=3) | anything})
infos = some("fingerprint shards shard corpus", anything | st.integers(-2, 9) | st.text(max_size=3))


def is_sound(document: Any) -> bool:
    fields = (document.id, document.title, document.text)
    return isinstance(document, Document) and all(isinstance(field, str) for field in fields)


@given(near_replies | anything)
def test_any_json_is_documents_or_a_failure(reply: Any) -> None:
    queries = len(reply["result"]) if isinstance(reply, dict) and isinstance(reply.get("result"), list) else 1
    try:
        answers = parse_reply(reply, queries)
    except InfrastructureError as error:
        answers = [error] * queries
    assert len(answers) == queries
    for answer in answers:
        assert str(answer).isprintable() if isinstance(answer, Failure) else all(map(is_sound, answer))


@pytest.mark.parametrize(
    "reply",
    [
        {"result": [[{"document": {"id": "1", "title": None, "text": None}, "score": 1}]]},
        {"result": [[]], "errors": {"x": "no"}},
        {"result": [[]], "errors": {"99": "no"}},
        {"result": [[]], "errors": {"-1": "no"}},
        {"result": [[]], "errors": ["no"]},
        {"result": [[]], "errors": {"0": "no"}, "refused": 5},
        {"result": [{"ids": ["1", 2], "scores": [1.0, 0.5]}]},
        {"result": [{"ids": ["1"], "scores": [1.0, 0.5]}]},
        {"result": [{"ids": ["1"], "scores": [float("inf")]}]},
        {"result": [[{"document": {"id": "1", "text": "t"}, "score": float("nan")}]]},
    ],
)
def test_replies_that_once_ended_a_run_are_failures(reply: Any) -> None:
    try:
        (answer,) = parse_reply(reply, 1)
    except InfrastructureError:
        return
    assert isinstance(answer, InfrastructureError)


@given(st.lists(infos | anything, min_size=1, max_size=3))
def test_any_info_is_a_manifest_or_that_of_a_server_of_others(said: list[Any]) -> None:
    try:
        layout = arrange({f"http://{n}": manifest_of(reply) for n, reply in enumerate(said)})
    except (UserError, InfrastructureError):  # several servers that contradict each other are the user's
        assert len(said) > 1 or manifest_of(said[0])["shards"] > 1  # type: ignore[index]
    else:
        assert sum(map(len, layout.shards)) == len(said)


bodies = st.one_of(
    (near_replies | paired | piped | infos | anything).map(lambda said: orjson.dumps(said)), st.binary(max_size=40)
)
statuses = st.sampled_from([200, 200, 200, 204, 302, 400, 404, 418, 422, 500, 503])
headers = st.sampled_from(
    [
        "",
        "Retry-After: nan\r\n",
        "Content-Encoding: gzip\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Set-Cookie: \x01=\r\n",
    ]
)
replies = st.one_of(
    st.tuples(statuses, headers, bodies).map(
        lambda said: (
            b"HTTP/1.1 %d X\r\n%bContent-Length: %d\r\n\r\n%b" % (said[0], said[1].encode(), len(said[2]), said[2])
        )
    ),
    st.binary(max_size=40),
)


async def searched(dialect: Any, said: list[bytes]) -> SearchResult | BaseException:
    """What a search comes to at a server that says these bytes, one after the other, and then the first again."""
    turn = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal turn
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said[turn % len(said)])
        turn += 1
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with RetrievalClient(ClientConfig((url,), dialect, timeout_s=5, retries=0)) as client:
            (outcome,) = await asyncio.gather(client.search("q", 2), return_exceptions=True)
            return outcome


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["retrieve", "batch_search", "api_search"]), st.lists(replies, min_size=1, max_size=2))
def test_any_bytes_end_a_search_and_never_the_run(dialect: Any, said: list[bytes]) -> None:
    outcome = asyncio.run(searched(dialect, said))
    if isinstance(outcome, SearchResult):
        assert len(outcome.documents) <= 2
        assert all(map(is_sound, outcome.documents))
    else:
        assert isinstance(outcome, InfrastructureError), repr(outcome)
