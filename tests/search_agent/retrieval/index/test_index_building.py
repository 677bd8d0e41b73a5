"""An index on disk equals one in memory, however it was cut, interrupted or sharded."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search_agent.retrieval.backends.bm25 import Bm25, Kernel, NumpyKernel
from search_agent.retrieval.backends.maxscore import MaxScoreKernel
from search_agent.retrieval.config import ServerConfig
from search_agent.retrieval.index import building, index_files, merging
from search_agent.retrieval.index.building import build_index
from search_agent.retrieval.index.postings import Batch, Postings, Range, build_postings, count_terms, term_maxima
from search_agent.retrieval.server.loading import Served, load
from verl.errors import UserError


def texts(number: int, seed: int = 3) -> list[str]:
    rng = random.Random(seed)
    words = [f"w{i}" for i in range(60)]
    weights = [1 / (1 + rank) for rank in range(60)]
    return [" ".join(rng.choices(words, weights, k=rng.randint(1, 30))) for _ in range(number)]


def write(path: Path, contents: list[str]) -> Path:
    path.write_text("".join(json.dumps({"id": str(i), "contents": text}) + "\n" for i, text in enumerate(contents)))
    return path


def found(served: Served, k: int = 10) -> list[list[tuple[int, float]]]:
    return [[(hit.doc, hit.score) for hit in hits] for hits in served.backend.search(texts(40, seed=9), k)]


def test_an_index_on_disk_answers_as_one_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "BLOCK_POSTINGS", 50)
    corpus = write(tmp_path / "c.jsonl", texts(100))
    in_memory = load(ServerConfig(corpus))
    build_index(corpus, tmp_path / "index", chunk_passages=7)
    on_disk = load(ServerConfig(corpus, index=tmp_path / "index"))
    assert found(on_disk) == found(in_memory)
    assert on_disk.manifest == in_memory.manifest
    assert [on_disk.documents.raw(i) for i in range(100)] == [in_memory.documents.raw(i) for i in range(100)]
    arrays = {
        index_files.STARTS,
        index_files.DOCS,
        index_files.SCORES,
        index_files.MAXIMA,
        "documents.jsonl",
        "documents.offsets.npy",
    }
    named = arrays | {index_files.MANIFEST, index_files.VOCABULARY, index_files.PARAMETERS}
    assert {path.name for path in (tmp_path / "index").iterdir()} == named


@pytest.mark.parametrize("stop_after", [1, 4])
def test_an_interrupted_build_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    corpus = write(tmp_path / "c.jsonl", texts(60))
    build_index(corpus, tmp_path / "whole", chunk_passages=10)
    counted = 0
    original = count_terms

    def interrupted(*args: object) -> object:
        nonlocal counted
        counted += 1
        if counted == stop_after + 1:
            raise KeyboardInterrupt
        return original(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(building, "count_terms", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_index(corpus, tmp_path / "cut", chunk_passages=10)
    build_index(corpus, tmp_path / "cut", chunk_passages=10)
    assert counted == 6 + 1
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "cut" / path.name).read_bytes()


def test_two_servers_that_start_at_once_build_one_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = write(tmp_path / "c.jsonl", texts(60))
    counted: list[int] = []
    original = count_terms

    def counting(*args: Any) -> Any:
        counted.append(args[2])
        return original(*args)

    monkeypatch.setattr(building, "count_terms", counting)
    with ThreadPoolExecutor(3) as pool:
        first, *others = pool.map(lambda _: build_index(corpus, tmp_path / "index", chunk_passages=10), range(3))
    assert counted == [0, 10, 20, 30, 40, 50]
    assert others == [first, first]


def test_a_finished_index_is_left_alone_and_a_changed_corpus_refused(tmp_path: Path) -> None:
    corpus = write(tmp_path / "c.jsonl", texts(10))
    build_index(corpus, tmp_path / "index")
    before = (tmp_path / "index" / index_files.SCORES).stat().st_mtime_ns
    corpus.touch()
    build_index(corpus, tmp_path / "index")
    assert (tmp_path / "index" / index_files.SCORES).stat().st_mtime_ns == before
    write(corpus, texts(11))
    with pytest.raises(UserError, match="built from another corpus"):
        build_index(corpus, tmp_path / "index")


def test_faulty_rows_and_repeated_ids_leave_no_index(tmp_path: Path) -> None:
    corpus = tmp_path / "c.jsonl"
    corpus.write_text('{"id": "1", "contents": "a"}\n{}\n{"id": "2", "contents": "b"}\nx\n')
    with pytest.raises(UserError, match=r"2 faulty line\(s\): 2 \(no id\), 4 \(not JSON"):
        build_index(corpus, tmp_path / "index", chunk_passages=1)
    corpus.write_text('{"id": "1", "contents": "a"}\n\n{"id": "2", "contents": "b"}\n{"id": "1", "contents": "c"}\n')
    with pytest.raises(UserError, match=r"1 faulty line\(s\): 4 \(id '1' for the second time\)"):
        build_index(corpus, tmp_path / "index", chunk_passages=2)


@pytest.mark.parametrize("suffix", [".parquet", ".tsv"])
def test_other_formats_give_the_same_passages(tmp_path: Path, suffix: str) -> None:
    rows = [("1", 'a "quoted" text', "First"), ("2", "zwei", "Zwölf | x")]
    path = tmp_path / f"c{suffix}"
    if suffix == ".tsv":
        quoted = ['"a ""quoted"" text"', "zwei"]
        lines = [f"{row[0]}\t{text}\t{row[2]}" for row, text in zip(rows, quoted, strict=True)]
        path.write_text("\n".join(["id\ttext\ttitle", *lines]), "utf-8")
    else:
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        columns = zip(*rows, strict=True)
        parquet.write_table(pyarrow.table(dict(zip(("id", "text", "title"), map(list, columns), strict=True))), path)
    documents = load(ServerConfig(path)).documents
    assert [documents.parsed(i) for i in range(2)] == [{"id": i, "contents": f'"{t}"\n{x}'} for i, x, t in rows]


def test_bm25s_reads_the_index(tmp_path: Path) -> None:
    bm25s = pytest.importorskip("bm25s")
    stemmer = pytest.importorskip("Stemmer").Stemmer("english")
    corpus = write(tmp_path / "c.jsonl", texts(50))
    build_index(corpus, tmp_path / "index", chunk_passages=20)
    theirs = bm25s.BM25.load(tmp_path / "index", mmap=True)
    ours = load(ServerConfig(corpus, index=tmp_path / "index"))
    for query, hits in zip(texts(40, seed=9), found(ours), strict=True):
        tokens = bm25s.tokenize(query, stopwords="en", stemmer=stemmer, return_ids=False, show_progress=False)[0]
        expected = np.sort(theirs.get_scores(tokens))[::-1]
        np.testing.assert_allclose([score for _, score in hits], expected[: len(hits)], rtol=1e-5)


@pytest.mark.parametrize("maker", ["bm25s", "FlashRAG"])
def test_a_folder_that_bm25s_saved_is_served_as_it_is(tmp_path: Path, maker: str) -> None:
    bm25s = pytest.importorskip("bm25s")
    stemmer = pytest.importorskip("Stemmer").Stemmer("english")
    contents, folder = texts(50), tmp_path / "bm25"
    theirs = bm25s.BM25(k1=1.5)
    if maker == "bm25s":
        tokens = bm25s.tokenize(contents, stopwords="en", stemmer=stemmer, show_progress=False)
        theirs.index(tokens, show_progress=False)
        theirs.save(folder, corpus=None)
    else:  # its index builder keeps the tokenizer beside the index
        tokenizer = bm25s.tokenization.Tokenizer(stopwords="en", stemmer=stemmer)
        theirs.index(tokenizer.tokenize(contents, return_as="tuple", show_progress=False), show_progress=False)
        theirs.save(folder, corpus=None)
        tokenizer.save_vocab(folder)
        tokenizer.save_stopwords(folder)
    corpus = write(tmp_path / "c.jsonl", contents)
    ours = load(ServerConfig(corpus, index=folder))
    assert ours.manifest["backend"]["k1"] == 1.5
    for query, hits in zip(texts(40, seed=9), found(ours), strict=True):
        tokens = bm25s.tokenize(query, stopwords="en", stemmer=stemmer, return_ids=False, show_progress=False)[0]
        scores = theirs.get_scores(tokens)
        np.testing.assert_allclose([score for _, score in hits], scores[[doc for doc, _ in hits]], rtol=1e-5)
        np.testing.assert_allclose([score for _, score in hits], np.sort(scores)[::-1][: len(hits)], rtol=1e-5)
    with pytest.raises(UserError, match="holds 50 passages, the corpus 51"):
        load(ServerConfig(write(tmp_path / "d.jsonl", texts(51)), index=folder))


@pytest.fixture(scope="module")
def large() -> Postings:
    """More passages than one window of the compiled kernel holds."""
    rng = np.random.default_rng(4)
    draws = np.minimum(rng.zipf(1.3, size=(9000, 8)), 400)
    return build_postings(" ".join(f"t{word}" for word in row) for row in draws)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), k=st.integers(1, 30), shards=st.integers(1, 3))
def test_the_compiled_kernel_equals_adding_everything_up(
    large: Postings, data: st.DataObject, k: int, shards: int
) -> None:
    terms = st.lists(st.integers(0, len(large.vocabulary) - 1), max_size=9)
    queries = data.draw(st.lists(terms, min_size=1, max_size=4))
    offsets = np.cumsum([0, *map(len, queries)]).astype(np.int64)
    batch = Batch(np.asarray([term for query in queries for term in query], np.int64), offsets)
    for shard in range(shards):
        docs = Range.of_shard(shard, shards, large.num_docs)
        expected, got = NumpyKernel(large)(batch, docs, k), MaxScoreKernel(large)(batch, docs, k)
        for left, right in zip(expected, got, strict=True):
            np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("kernel", [NumpyKernel, MaxScoreKernel])
def test_more_than_there_is_and_nothing_at_all(kernel: Callable[[Postings], Kernel]) -> None:
    postings = build_postings(["a1 b1", "b1", "c1"])
    engine = Bm25(postings, kernel=kernel(postings))
    assert [[hit.doc for hit in hits] for hits in engine.search(["b1", "nothing", ""], 99)] == [[1, 0], [], []]
    assert engine.search([], 5) == []


def test_where_nothing_can_be_written_another_folder_is_asked_for(tmp_path: Path) -> None:
    corpus = write(tmp_path / "c.jsonl", texts(3))
    with pytest.raises(UserError, match=r"index=/proc/nowhere/index: .*; give index=FOLDER that can be written"):
        build_index(corpus, Path("/proc/nowhere/index"))


def test_an_index_that_is_finished_takes_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = write(tmp_path / "c.jsonl", texts(3))
    manifest = build_index(corpus, tmp_path / "index")
    monkeypatch.setattr(index_files, "exclusive", None)
    assert build_index(corpus, tmp_path / "index") == manifest


def test_arrays_are_on_the_disk_before_the_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(building, "sync", lambda path: synced.append(path.name))
    monkeypatch.setattr(building, "write_atomically", lambda path, _: synced.append(path.name))
    build_index(write(tmp_path / "c.jsonl", texts(3)), tmp_path / "index")
    at = synced.index(index_files.MANIFEST)
    assert {"documents.jsonl", "documents.offsets.npy", *index_files.WORD_FILES, "index"} <= set(synced[:at])


def test_an_index_with_scores_of_0_is_refused(tmp_path: Path) -> None:
    bm25s = pytest.importorskip("bm25s")
    theirs = bm25s.BM25(method="robertson")  # a term of more than half of the passages scores 0
    theirs.index(bm25s.tokenize(["a1 b1", "a1 c1", "a1 d1"], show_progress=False), show_progress=False)
    theirs.save(tmp_path / "bm25", corpus=None)
    corpus = write(tmp_path / "c.jsonl", ["a1 b1", "a1 c1", "a1 d1"])
    with pytest.raises(UserError, match="method robertson scores some terms 0 or less; build with method lucene"):
        load(ServerConfig(corpus, index=tmp_path / "bm25"))


def test_the_compiled_kernel_takes_a_score_of_0_for_no_match(large: Postings) -> None:
    """Where each term of a query scores 0 everywhere, no place may be noted more than once."""
    scores = large.scores.copy()
    terms = np.argsort(np.diff(large.starts))[-60:]
    for term in terms[1:]:
        scores[large.starts[term] : large.starts[term + 1]] = 0.0
    scores.setflags(write=False)
    zeros = Postings(large.vocabulary, large.starts, large.docs, scores, term_maxima(scores, large.starts), 9000)
    for part in (terms, terms[1:]):
        batch = Batch(part.astype(np.int64), np.asarray([0, len(part)], np.int64))
        expected, got = NumpyKernel(zeros)(batch, Range(0, 9000), 20), MaxScoreKernel(zeros)(batch, Range(0, 9000), 20)
        for left, right in zip(expected, got, strict=True):
            np.testing.assert_array_equal(left, right)
