"""Clients as their papers published them, against a real server: what they send, and how they read the reply.

Each function does what the named code base does (`requests`, no encoding, no checks), written anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from search_agent.retrieval.server.child import start_server

PASSAGES = [
    '"Grey Tower"\nThe grey tower stands in Oslo.',
    '"A | B"\nA "quoted" tower.',
    '"Bridge"\nA bridge & a road.',
]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("published")
    rows = [{"id": str(number), "contents": contents} for number, contents in enumerate(PASSAGES)]
    (folder / "c.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with start_server(folder / "c.jsonl", log=folder / "log") as server:
        yield server.url


def search_r1(url: str, queries: list[str]) -> list[str]:
    """Search-R1 and AutoRefine: one POST for a batch, then ``Doc i(Title: ...) text`` lines."""
    payload: dict[str, Any] = {"queries": queries, "topk": 3, "return_scores": True}
    results = requests.post(f"{url}/retrieve", json=payload, timeout=30).json()["result"]
    texts = []
    for row in results:
        text = ""
        for number, item in enumerate(row):
            content = item["document"]["contents"]
            title, body = content.split("\n")[0], "\n".join(content.split("\n")[1:])
            text += f"Doc {number + 1}(Title: {title}) {body}\n"
        texts.append(text)
    return texts


def re_search(url: str, queries: list[str]) -> list[list[str]]:
    """ReSearch in training: a batch, ``top_n`` 5, no scores; contents are taken as they are."""
    found = requests.post(f"{url}/batch_search", json={"query": queries, "top_n": 5}, timeout=30).json()
    return [[document["contents"] for document in row] for row in found]


def flash_rag(url: str, query: str) -> list[tuple[str, float]]:
    """ReSearch's FlashRAG in evaluation: one query, with scores."""
    body: dict[str, Any] = {"query": query, "top_n": 5, "return_score": True}
    documents, scores = requests.post(f"{url}/search", json=body, timeout=30).json()
    return [(document["contents"], score) for document, score in zip(documents, scores, strict=True)]


def ex_search(url: str, query: str, k: int) -> list[dict[str, str]]:
    """ExSearch: the query goes into the address as it is; text is split at the first bar, quotes are deleted."""
    found: Any = requests.get(f"{url}/api/search?query={query}&k={k}", timeout=30).json()["topk"]
    rows = [hit["text"].split("|", 1) for hit in found]
    return [{"title": title.replace('"', "").strip(), "text": text.replace('"', "").strip()} for title, text in rows]


def test_search_r1_and_autorefine(url: str) -> None:
    found, nothing, blank = search_r1(url, ["grey towers", "zebra", ""])
    assert found.splitlines()[0] == 'Doc 1(Title: "Grey Tower") The grey tower stands in Oslo.'
    assert found.count("Doc ") == 2
    assert (nothing, blank) == ("", "")


@pytest.mark.parametrize("size", [256 * 5, 512 * 5])
def test_a_training_batch_in_one_request(url: str, size: int) -> None:
    """As many as Search-R1 and AutoRefine ask at once, at their published sizes; a policy has spoilt some."""
    asked = [f"grey towers {number}" for number in range(size)]
    asked[7], asked[9] = "half a pair \ud83d", "x" * 20_000
    found = search_r1(url, asked)
    assert len(found) == size
    assert all(text.startswith('Doc 1(Title: "Grey Tower")') for n, text in enumerate(found) if n not in (7, 9))


def test_research_in_training(url: str) -> None:
    assert re_search(url, ["bridge", "", "oslo"]) == [[PASSAGES[2]], [], [PASSAGES[0]]]


def test_research_in_evaluation(url: str) -> None:
    found = flash_rag(url, "towers")
    assert sorted(contents for contents, _ in found) == sorted(PASSAGES[:2])
    assert found[0][1] >= found[1][1] > 0
    health = requests.get(f"{url}/health", timeout=30)
    assert health.status_code == 200


def test_exsearch(url: str) -> None:
    assert ex_search(url, "a quoted tower?", 1) == [{"title": "A / B", "text": "A quoted tower."}]
    assert ex_search(url, "bridge", 5) == [{"title": "Bridge", "text": "A bridge & a road."}]
    assert ex_search(url, "zebra", 5) == []


def test_ranks_and_probabilities_as_colbert_gives_them(url: str) -> None:
    rows = requests.get(f"{url}/api/search?query=tower", timeout=30).json()["topk"]
    assert [row["rank"] for row in rows] == [1, 2]
    assert sum(row["prob"] for row in rows) == pytest.approx(1)
