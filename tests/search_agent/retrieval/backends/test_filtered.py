"""A request may be about some passages only; what they are found by does not change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search_agent.retrieval.backends.bm25 import Bm25
from search_agent.retrieval.backends.filtered import Filtered, _column
from search_agent.retrieval.config import ServerConfig
from search_agent.retrieval.index.postings import Range, build_postings
from search_agent.retrieval.server.app import App
from search_agent.retrieval.server.loading import load
from search_agent.retrieval.server.wire import Bounds
from tests.search_agent.retrieval.server.test_retrieval_app import call
from verl.errors import UserError

ROWS = [
    {"id": "a", "contents": "red apple", "date": "2017-05-01", "size": 1},
    {"id": "b", "contents": "red pear", "date": "2018-05-01", "metadata": {"source": "news"}},
    {"id": "c", "contents": "red plum", "date": "2019-05-01", "size": 3, "metadata": {"source": "wiki"}},
    {"id": "d", "contents": "blue sky", "size": 2.5, "metadata": {"source": "wiki"}},
]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "c.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    return path


def serve(corpus: Path, *filters: str, **more: Any) -> App:
    application = App(Bounds(), 1)
    application.start(load(ServerConfig(corpus, filters=filters, **more)))
    return application


@pytest.mark.parametrize(
    ("options", "ids", "selected"),
    [
        ({}, "abc", None),
        ({"source": "wiki"}, "c", 2),
        ({"source": "nowhere"}, "", 0),
        ({"date.from": "2018"}, "bc", 2),
        ({"date.from": "2018", "date.to": "2018-12-31"}, "b", 1),
        ({"size.to": 2}, "a", 1),
        ({"size": 3, "source": "wiki"}, "c", 1),
    ],
)
async def test_options_select_passages(corpus: Path, options: Any, ids: str, selected: int | None) -> None:
    application = serve(corpus, "date", "source", "size")
    body = {"queries": ["red"], "topk": 3, "ids_only": True, "options": options}
    status, reply, _ = await call(application, "POST", "/retrieve", body)
    assert status == 200
    assert "".join(reply["result"][0]["ids"]) == ids
    _, info, _ = await call(application, "GET", f"/info?options={quote(json.dumps(options))}")
    assert info.get("selected") == selected
    assert info["backend"]["filters"]["date"]["from"] == "2017-05-01"
    assert info["backend"]["filters"]["source"]["missing"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [({"colour": "red"}, "'colour' is no filter of this corpus; it has size"), ({"size": "3"}, "'3' is not a number")],
)
async def test_options_that_are_not_understood_are_refused(corpus: Path, options: Any, message: str) -> None:
    application = serve(corpus, "size")
    for method, target in (("POST", "/retrieve"), ("GET", f"/info?options={quote(json.dumps(options))}")):
        status, reply, _ = await call(application, method, target, {"queries": ["red"], "options": options})
        assert status == 422
        assert message in reply["detail"]


async def test_a_back_end_that_cannot_count_says_so(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def count(self: Filtered, options: Any) -> int:
        raise ValueError("does not count")

    monkeypatch.setattr(Filtered, "count", count)
    status, reply, _ = await call(serve(corpus, "size"), "GET", f"/info?options={quote(json.dumps({'size': 1}))}")
    assert (status, reply["detail"]) == (422, "does not count")


def test_a_filter_needs_a_field_of_one_kind(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="filters: colour is in no row"):
        serve(corpus, "colour")
    (tmp_path / "mixed.jsonl").write_text('{"id":"1","contents":"x","f":1}\n{"id":"2","contents":"x","f":"1"}')
    with pytest.raises(UserError, match="filters: f is neither text"):
        serve(tmp_path / "mixed.jsonl", "f")


def test_another_value_is_another_fingerprint(corpus: Path) -> None:
    plain = load(ServerConfig(corpus)).manifest["fingerprint"]
    before = load(ServerConfig(corpus, filters=("date",))).manifest["fingerprint"]
    corpus.write_text(corpus.read_text().replace("2018-05", "2018-06"))
    assert len({plain, before, load(ServerConfig(corpus, filters=("date",))).manifest["fingerprint"]}) == 3
    assert load(ServerConfig(corpus)).manifest["fingerprint"] == plain


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["x1", "x1 y1", "y1 y1 z1"]), st.integers(0, 3)), min_size=1, max_size=60),
    st.integers(1, 8),
    st.integers(0, 3),
    st.integers(1, 3),
)
def test_what_is_selected_keeps_its_order(rows: list[tuple[str, int]], k: int, low: int, shards: int) -> None:
    postings = build_postings(text for text, _ in rows)
    for shard in range(shards):
        plain = Bm25(postings, Range.of_shard(shard, shards, len(rows)))
        found = Filtered(plain, {"f": _column("f", [value for _, value in rows])}).search_selected(
            ["x1 y1", "nothing"], k, {"f.from": low}
        )
        whole = plain.search(["x1 y1"], len(rows))[0]
        assert found == [[hit for hit in whole if rows[hit.doc][1] >= low][:k], []]
