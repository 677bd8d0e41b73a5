"""A cross-encoder judges each query against its own passages, and only those that the back end found."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search_agent.retrieval.config import RerankConfig, ServerConfig
from search_agent.retrieval.server.loading import load
from verl.errors import UserError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TEXTS = ["red apple", "a green apple tree", "blue sky", "apple pie and apple juice", "an apple a day"]


def make_model(folder: Path, outputs: int) -> str:
    words = sorted({word for text in TEXTS for word in text.split()})
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=5 + len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=outputs,
    )
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps({"id": str(i), "contents": text}) + "\n" for i, text in enumerate(TEXTS)))
    return path


def judge(model: str, query: str, passage: str) -> float:
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    classifier = transformers.AutoModelForSequenceClassification.from_pretrained(model).eval()
    with torch.no_grad():
        return float(classifier(**tokenizer(query, passage, return_tensors="pt")).logits[0, 0])


def test_hits_stand_in_the_order_of_the_cross_encoder(tmp_path: Path, corpus: Path) -> None:
    model = make_model(tmp_path, 1)
    served = load(ServerConfig(corpus, rerank=RerankConfig(model, depth=4)))
    queries = ["apple", "green sky", "nothing"]
    found = served.backend.search(queries, 3)
    for query, allowed, hits in zip(queries, ([0, 1, 3, 4], [1, 2], []), found, strict=True):
        expected = sorted(
            ((judge(model, query, TEXTS[doc]), doc) for doc in allowed), key=lambda pair: (-pair[0], pair[1])
        )
        assert [hit.doc for hit in hits] == [doc for _, doc in expected][:3]
        assert [hit.score for hit in hits] == pytest.approx([score for score, _ in expected][:3], abs=1e-5)
    assert served.manifest["backend"]["over"]["name"] == "bm25"


def test_a_model_that_is_no_cross_encoder_is_refused(tmp_path: Path, corpus: Path) -> None:
    with pytest.raises(UserError, match=r"rerank\.model: .* has 2 outputs"):
        load(ServerConfig(corpus, rerank=RerankConfig(make_model(tmp_path, 2))))
    with pytest.raises(UserError, match=r"rerank\.model: .* cannot be loaded"):
        load(ServerConfig(corpus, rerank=RerankConfig(str(tmp_path / "nowhere"))))


@pytest.mark.parametrize("wrong", [{"depth": 0}, {"max_tokens": 0}])
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="=0: write 1 or more"):
        RerankConfig("m", **wrong)


def test_a_query_that_is_longer_than_the_model_reads_is_cut(tmp_path: Path, corpus: Path) -> None:
    """A policy may write one: it is searched as any other."""
    served = load(ServerConfig(corpus, rerank=RerankConfig(make_model(tmp_path, 1), depth=4, max_tokens=64)))
    for query in ("apple " * 340, "apple " + "z" * 8000, "apple 林檎" * 500):
        (hits,) = served.backend.search([query], 3)
        assert len(hits) == 3
        assert all(math.isfinite(hit.score) for hit in hits)


def test_a_length_that_the_model_cannot_read_is_refused_at_the_start(tmp_path: Path, corpus: Path) -> None:
    with pytest.raises(UserError, match=r"rerank\.max_tokens: .* cannot read 600 tokens"):
        load(ServerConfig(corpus, rerank=RerankConfig(make_model(tmp_path, 1), max_tokens=600)))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=300), min_size=1, max_size=3))
def test_no_query_makes_it_fail(hostile: Any, queries: list[str]) -> None:
    for hits in hostile.search([f"apple {query}" for query in queries], 3):
        assert len(hits) == 3
        assert all(math.isfinite(hit.score) for hit in hits)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "c.jsonl").write_text("".join(json.dumps({"id": t, "contents": t}) + "\n" for t in TEXTS))
    return load(ServerConfig(folder / "c.jsonl", rerank=RerankConfig(make_model(folder, 1), max_tokens=32))).backend
