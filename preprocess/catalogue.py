"""What ``preprocess.download`` can fetch: published corpora, indexes and question sets, by a short name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from search_agent.data.benchmark import QUESTIONS
from verl.config.nearest import nearest
from verl.errors import UserError

FLASHRAG = "RUC-NLPIR/FlashRAG_datasets"


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to fetch from a dataset repository of the Hugging Face Hub."""

    name: str
    about: str
    repository: str
    patterns: tuple[str, ...]
    """Which of the repository's files (shell patterns; ``*`` crosses folders)."""
    joined: str | None = None
    """The file that ``part_*`` are pieces of, in the order of their names; None if the files are used as they are."""
    folder: str = "."
    """Where its files go, under the save path."""


def _question_set(name: str, about: str) -> Item:
    return Item(name, about, FLASHRAG, (f"{name}/*.jsonl",), folder="flashrag")


DEEPRETRIEVAL = {
    "search_engine": ("pubmed", "ctgov"),
    "local_index_search": (
        "nq_serini",
        "triviaqa",
        "squad",
        "scifact",
        "nfcorpus",
        "fever",
        "hotpotqa",
        "fiqa",
        "msmarco_beir",
    ),
    "sql": ("bird", "spider"),
}
"""DeepRetrieval's categories and data sets, as its repository names them."""


def _deepretrieval(category: str, name: str) -> Item:
    about = f"DeepRetrieval's rows of {name} ({category})"
    patterns = (f"{category}/{name}/*",)
    return Item(f"deepretrieval-{name}", about, "DeepRetrieval/datasets", patterns, folder="deepretrieval")


ITEMS = (
    Item(
        "wiki-18-corpus",
        "Wikipedia of December 2018, about 21 million passages: wiki-18.jsonl",
        "PeterJinGo/wiki-18-corpus",
        ("wiki-18.jsonl.gz",),
    ),
    Item(
        "wiki-18-e5-index",
        "its exact E5 index, about 65 GB: e5_Flat.index",
        "PeterJinGo/wiki-18-e5-index",
        ("part_*",),
        joined="e5_Flat.index",
    ),
    Item(
        "wiki-18-e5-index-hnsw64",
        "its approximate E5 index, searched without a GPU: e5_HNSW64.index",
        "PeterJinGo/wiki-18-e5-index-HNSW64",
        ("part_*",),
        joined="e5_HNSW64.index",
    ),
    Item(
        "wiki-18-bm25-index",
        "its Lucene index, for pyserini: bm25/",
        "PeterJinGo/wiki-18-bm25-index",
        ("bm25/*",),
    ),
    Item(
        "nq-hotpotqa-train",
        "Search-R1's ready-made training and test parquet",
        "PeterJinGo/nq_hotpotqa_train",
        ("*.parquet",),
        folder="nq_hotpotqa_train",
    ),
    _question_set("nq", "Natural Questions"),
    _question_set("triviaqa", "TriviaQA"),
    _question_set("popqa", "PopQA"),
    _question_set("hotpotqa", "HotpotQA"),
    _question_set("2wikimultihopqa", "2WikiMultihopQA"),
    _question_set("musique", "MuSiQue"),
    _question_set("bamboogle", "Bamboogle"),
    _question_set("wow", "Wizard of Wikipedia"),
    *(_deepretrieval(category, name) for category, names in DEEPRETRIEVAL.items() for name in names),
)
"""Everything that the recipes name. Sizes are asked of the hub before a fetch, since repositories change."""

RETRIEVAL = ("wiki-18-corpus", "wiki-18-e5-index")
GROUPS = {
    "retrieval": RETRIEVAL,
    "questions": QUESTIONS,
    **{
        f"deepretrieval-{category}": tuple(f"deepretrieval-{name}" for name in names)
        for category, names in DEEPRETRIEVAL.items()
    },
}


def find(names: Sequence[str]) -> list[Item]:
    """The items with these names, a group standing for its members. Raises UserError for a name there is not."""
    by_name = {item.name: item for item in ITEMS}
    wanted = [member for name in names for member in GROUPS.get(name, (name,))]
    known = [*by_name, *GROUPS]
    wrong = [f"{name}: no such item{nearest(name, known)}" for name in wanted if name not in by_name]
    if wrong:
        raise UserError("\n".join([*wrong, f"there are {', '.join(known)}"]))
    return [by_name[name] for name in dict.fromkeys(wanted)]
