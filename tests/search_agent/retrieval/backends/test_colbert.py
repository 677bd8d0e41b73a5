"""MaxSim equals a plain reading of ColBERT's paper and code, for models as ColBERT and as PyLate save them."""

from __future__ import annotations

import json
import math
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search_agent.retrieval.config import RerankConfig, ServerConfig
from verl.errors import UserError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import save_file  # noqa: E402

from search_agent.retrieval.backends.colbert import ColbertJudge  # noqa: E402
from search_agent.retrieval.server.loading import load  # noqa: E402

TEXTS = ["red apple", "a green apple, tree!", "blue sky.", "apple pie; and apple juice", "an apple a day", "?"]
QUERIES = ["red apple", "what is in the sky", "apple juice, pie " * 9]
DIMENSIONS = 6


def make_model(folder: Path, kind: str) -> str:
    words = sorted({w.strip(string.punctuation) for text in [*TEXTS, *QUERIES] for w in text.split()} - {""})
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused0]", "[unused1]"]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join([*special, *string.punctuation, *words]))
    tokenizer = transformers.BertTokenizerFast(str(folder / "vocab.txt"))
    if kind == "pylate":
        tokenizer.add_tokens(["[Q] ", "[D] "])
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    model, linear = transformers.BertModel(config, add_pooling_layer=False), torch.randn(DIMENSIONS, 16)
    weights = {f"bert.{name}": tensor.contiguous() for name, tensor in model.state_dict().items()}
    if kind == "pylate":
        model.save_pretrained(folder)
        (folder / "1_Dense").mkdir()
        (folder / "1_Dense" / "config.json").write_text(json.dumps({"bias": False, "in_features": 16}))
        save_file({"linear.weight": linear}, folder / "1_Dense" / "model.safetensors")
        said = {"query_prefix": "[Q] ", "document_prefix": "[D] ", "attend_to_expansion_tokens": True}
        said["skiplist_words"] = list(".,")  # type: ignore[assignment]
        (folder / "config_sentence_transformers.json").write_text(json.dumps(said))
    else:
        config.save_pretrained(folder)
        if kind == "colbert.bin":
            torch.save({**weights, "linear.weight": linear}, folder / "pytorch_model.bin")
        else:
            save_file({**weights, "linear.weight": linear}, folder / "model.safetensors", {"format": "pt"})
        (folder / "artifact.metadata").write_text(json.dumps({"query_token_id": "[unused0]", "dim": DIMENSIONS}))
    return str(folder)


def reference(folder: str, kind: str, query: str, passage: str, query_tokens: int, passage_tokens: int) -> float:
    """Khattab and Zaharia's score, one text at a time, with no padding but the masks of the query."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    torch.manual_seed(0)
    transformers.BertModel(model.config, add_pooling_layer=False)
    linear = torch.randn(DIMENSIONS, 16)
    marks, skipped = (("[Q] ", "[D] "), ".,") if kind == "pylate" else (("[unused0]", "[unused1]"), string.punctuation)

    def vectors(text: str, mark: str, length: int, is_query: bool) -> Any:
        ids = tokenizer.encode(text, truncation=True, max_length=length - 1)
        ids = [ids[0], tokenizer.convert_tokens_to_ids(mark), *ids[1:]]
        seen = [1] * len(ids)
        if is_query:
            masks = length - len(ids)
            ids, seen = ids + [tokenizer.mask_token_id] * masks, seen + [int(kind == "pylate")] * masks
        with torch.no_grad():
            states = model(torch.tensor([ids]), attention_mask=torch.tensor([seen])).last_hidden_state[0]
        rows = torch.nn.functional.normalize(states @ linear.T, dim=-1)
        bad = set() if is_query else {tokenizer.convert_tokens_to_ids(symbol) for symbol in skipped}
        return rows[[number for number, token in enumerate(ids) if token not in bad]]

    left, right = vectors(query, marks[0], query_tokens, True), vectors(passage, marks[1], passage_tokens, False)
    return float((left @ right.T).max(1).values.sum())


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps({"id": str(i), "contents": text}) + "\n" for i, text in enumerate(TEXTS)))
    return path


@pytest.mark.parametrize("kind", ["colbert", "colbert.bin", "pylate"])
def test_scores_equal_the_reference(tmp_path: Path, kind: str) -> None:
    model = make_model(tmp_path / "model", kind)
    judge = ColbertJudge(RerankConfig(model, kind="colbert", max_tokens=10))
    for query, scores in zip(QUERIES, judge.judge(QUERIES, [TEXTS] * len(QUERIES)), strict=True):
        np.testing.assert_allclose(scores, [reference(model, kind, query, text, 32, 10) for text in TEXTS], atol=1e-4)


@pytest.mark.parametrize("kind", ["colbert", "pylate"])
def test_reranking_equals_the_reference(tmp_path: Path, corpus: Path, kind: str) -> None:
    model = make_model(tmp_path / "model", kind)
    served = load(ServerConfig(corpus, rerank=RerankConfig(model, kind="colbert", depth=4, max_tokens=10)))
    (hits,) = served.backend.search(["red apple"], 3)
    expected = {doc: reference(model, kind, "red apple", TEXTS[doc], 32, 10) for doc in (0, 1, 3, 4)}
    assert [hit.doc for hit in hits] == sorted(expected, key=lambda doc: -expected[doc])[:3]
    np.testing.assert_allclose([hit.score for hit in hits], [expected[hit.doc] for hit in hits], atol=1e-4)


def test_what_is_no_colbert_is_refused(tmp_path: Path, corpus: Path) -> None:
    model = make_model(tmp_path / "model", "pylate")
    with pytest.raises(UserError, match=r"rerank\.max_tokens: .* cannot read 600 tokens"):
        load(ServerConfig(corpus, rerank=RerankConfig(model, kind="colbert", max_tokens=600)))
    (tmp_path / "model" / "1_Dense" / "config.json").write_text(json.dumps({"bias": True}))
    for name, message in ((model, "not a plain linear one"), ("no/such/model here", "cannot be loaded as a ColBERT")):
        with pytest.raises(UserError, match=rf"rerank\.model: .*{message}"):
            load(ServerConfig(corpus, rerank=RerankConfig(name, kind="colbert")))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=300), min_size=1, max_size=3))
def test_no_query_makes_it_fail(hostile: Any, queries: list[str]) -> None:
    queries = [*queries, "apple \x1b[31m " * 400, "林檎" * 1000]
    for hits in hostile.search(queries, 3):
        assert all(math.isfinite(hit.score) for hit in hits)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "c.jsonl").write_text("".join(json.dumps({"id": t, "contents": t}) + "\n" for t in TEXTS))
    model = make_model(folder / "model", "colbert")
    return load(ServerConfig(folder / "c.jsonl", rerank=RerankConfig(model, kind="colbert", max_tokens=10))).backend
