"""Data plug-in: published question sets to be measured on, in the files that they are published in.

    FlashRAG    FOLDER/<split>.jsonl, .json (a row a line) or <split>*.parquet: id, question, golden_answers, and with
                ``choices`` golden_answers are places in them
    LongBench   FILE.jsonl: _id, input, answers, context
    BEIR        FOLDER/queries.jsonl and FOLDER/qrels/<split>.tsv: the relevant documents are ``metadata.relevant``

Several sets are one test set, whose rows say which they are of (``data_source``): results are told by set, and their
mean. A file is used whole or not at all: faulty rows are named, and every row becomes a task.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search_agent.data.source import Source, Split
from verl.config.nearest import nearest
from verl.data.load import Rows, read_rows, tasks_of
from verl.data.tasks import Task
from verl.errors import UserError

SPLITS = ("test", "dev", "validation", "train")
"""The split that a set is reported on: the first of these that it has. Many sets publish no answers for ``test``."""
QUESTIONS = ("nq", "triviaqa", "popqa", "hotpotqa", "2wikimultihopqa", "musique", "bamboogle")
LONGBENCH = tuple(
    f"longbench_{name}"
    for name in (
        "2wikimqa", "2wikimqa_e", "hotpotqa", "hotpotqa_e", "multifieldqa_en", "multifieldqa_en_e", "musique",
        "narrativeqa",
    )
)  # fmt: skip
"""The eight question sets of LongBench that ReSearch reports."""
GROUPS: Mapping[str, Sequence[str]] = {"questions": QUESTIONS, "longbench": LONGBENCH}
DEEP = ("max_k=3000",)
"""What ``retriever=embedded`` is told: a ranking is measured as deep as DeepRetrieval's, 3,000."""
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Config:
    """Which sets, and where they stand."""

    sets: tuple[str, ...]
    """Names under ``root`` (``nq``, ``longbench_hotpotqa``; ``questions`` and ``longbench`` are seven and eight), or
    paths of folders and files."""
    root: str = "data/flashrag"
    """Where named sets are, ``<root>/<name>/<split>.jsonl``; ``python -m preprocess.download`` puts them there."""
    longbench: str = "data/longbench"
    """Where LongBench's files are, as its ``data.zip`` has them: ``<longbench>/hotpotqa_e.jsonl``."""
    split: str | None = None
    """The split to use; null is the first of test, dev, validation and train that a set has."""
    corpus: str | None = None
    """Passages that ``retriever=embedded`` serves; null is a BEIR folder's own, or goes with a retriever URL."""

    def __post_init__(self) -> None:
        if not self.sets or len(set(self.sets)) < len(self.sets):
            raise UserError(f"sets is {list(self.sets)}: name at least one set, and none twice")


@dataclass(frozen=True)
class Benchmark(Split):
    """The tasks of all sets; ``tasks`` is the file of the first, for messages."""

    files: tuple[tuple[str, Path], ...] = ()
    """Name and file of each set."""

    def load(self) -> list[Task]:
        """See ``Split``."""
        return [task for name, file in self.files for task in tasks_of(_rows(name, file), str(file))]


def build(config: Config, *, out: Path, seed: int) -> Source:
    """Find every file. Raises UserError that names what is not there and what is. ``out`` and ``seed`` are not needed.

    It is all test: nothing here is to be trained on, or chosen by.
    """
    named = [member for name in config.sets for member in GROUPS.get(name, (name,))]
    files = tuple(_found(name, config) for name in named)
    own = files[0][1].parent.parent / "corpus.jsonl"
    is_beir = len(files) == 1 and files[0][1].suffix == ".tsv" and own.is_file()
    corpus = Path(config.corpus) if config.corpus else own if is_beir else None
    split = Benchmark(files[0][1], corpus, files=files)
    return Source(split, split, split, server=DEEP)


def files_of(folder: Path, split: str) -> list[Path]:
    """The files of a split in order; none if the folder has no such split."""
    for file in (folder / f"{split}.jsonl", folder / f"{split}.json", folder / "qrels" / f"{split}.tsv"):
        if file.is_file():
            return [file]
    return sorted(path for path in folder.glob(f"{split}*.parquet") if (path.stem + "-").startswith(f"{split}-"))


def splits_of(folder: Path) -> list[str]:
    """The splits that a folder has, by the names of its files."""
    files = [*folder.glob("*.json*"), *folder.glob("*.parquet"), *folder.glob("qrels/*.tsv")]
    return sorted({file.stem.partition("-0")[0] for file in files} - {"queries", "corpus"})


def _found(name: str, config: Config) -> tuple[str, Path]:
    """What a set is called, and its file (the first of a split in parts, which ``_rows`` reads in order)."""
    path = Path(name)
    if name in LONGBENCH and not path.exists():
        path = Path(config.longbench) / f"{name.removeprefix('longbench_')}.jsonl"
        told = f"; unpack LongBench's data.zip there, or set data.longbench={config.longbench}"
    elif not path.exists():
        path = Path(config.root) / name
        known = [*QUESTIONS, *LONGBENCH, *GROUPS]
        fetch = f"; run: python -m preprocess.download --save_path {Path(config.root).parent} {name}"
        told = fetch if name in QUESTIONS else f"{nearest(name, known)}; there are {', '.join(known)}, and any folder"
    if path.is_file():
        return name if name in LONGBENCH else path.stem, path
    if not path.is_dir():
        raise UserError(f"benchmark {name}: {path} is not there{told}")
    for split in (config.split,) if config.split else SPLITS:
        if files := files_of(path, split):
            return path.resolve().name, files[0]
    lacking = f"no split {config.split}" if config.split else f"none of {', '.join(SPLITS)}"
    raise UserError(f"benchmark {name}: {path} has {lacking}; it has: {', '.join(splits_of(path)) or 'no such file'}")


def _rows(name: str, file: Path) -> Rows:
    """Numbered rows as ``load_tasks`` takes them, or the reason why one is none."""
    if file.suffix == ".tsv":
        yield from _beir(name, file)
        return
    parts = [file] if file.suffix != ".parquet" else files_of(file.parent, file.stem.partition("-")[0])
    number = 0
    for part in parts:
        for place, row in read_rows(part):
            number = place if len(parts) == 1 else number + 1
            yield number, row if isinstance(row, str) else _row(name, row)


def _row(name: str, row: Mapping[str, Any]) -> Mapping[str, Any] | str:
    """The row with the set's name; LongBench's columns are FlashRAG's, and places among choices are letters."""
    if "input" in row and "answers" in row:
        kept = {key: row.get(key) for key in ("context", "length", "language", "all_classes")}
        metadata = {**kept, "dataset": row.get("dataset")}
        row = {"id": row.get("_id"), "question": row["input"], "golden_answers": row["answers"], "metadata": metadata}
    elif row.get("choices") is not None:
        lettered = _lettered(row)
        if isinstance(lettered, str):
            return lettered
        row = lettered
    return {**row, "data_source": name}


def _lettered(row: Mapping[str, Any]) -> Mapping[str, Any] | str:
    """A row of multiple choice: the choices stand in the question, a letter each; the letter, the choice, and both
    together are right."""
    choices, places = row["choices"], row.get("golden_answers")
    places = places if isinstance(places, list) else [places]
    if not isinstance(choices, list) or not 0 < len(choices) <= len(LETTERS):
        return f"choices: a list of 1 to {len(LETTERS)} texts is needed"
    if not all(isinstance(choice, str) and choice.strip() for choice in choices):
        return "choices: holds one that is empty or no text"
    if not places:
        return "golden_answers: no answer, so nothing could be right"
    golds: list[str] = []
    for place in places:
        number = int(place) if str(place).isdecimal() and not isinstance(place, bool) else -1
        if not 0 <= number < len(choices):
            return f"golden_answers: {place!r} is no place among its {len(choices)} choices, counted from 0"
        golds += [LETTERS[number], f"{LETTERS[number]}. {choices[number]}", choices[number]]
    options = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False)]
    asked = row.get("question")
    question = "\n".join([asked.strip(), *options]) if isinstance(asked, str) and asked.strip() else asked
    return {**row, "question": question, "golden_answers": golds}


def _beir(name: str, file: Path) -> Rows:
    """A row a query that a split's judgements name, in their order; accepted answers are ids of relevant documents."""
    queries = {}
    source = file.parent.parent / "queries.jsonl"
    for number, row in read_rows(source):
        if isinstance(row, str) or not isinstance(row.get("text"), str):
            raise UserError(f"{source}, row {number}: {row if isinstance(row, str) else 'has no text'}")
        queries[str(row.get("_id"))] = row["text"]
    grades: dict[str, dict[str, float]] = {}
    first: dict[str, int] = {}
    for number, query, document, grade in _judgements(file):
        if isinstance(grade, str):
            yield number, grade
            continue
        first.setdefault(query, number)
        grades.setdefault(query, {})[document] = grade
    for query, judged in grades.items():
        relevant = [document for document, grade in judged.items() if grade > 0]
        if query not in queries:
            yield first[query], f"query-id: {query!r} does not stand in {source.name}"
        elif not relevant:
            yield first[query], f"query {query!r} has no relevant document, so it has no score: take its rows out"
        else:
            row = {"id": query, "question": queries[query], "golden_answers": relevant, "data_source": name}
            yield first[query], {**row, "metadata": {"relevant": judged}}


def _judgements(file: Path) -> Iterator[tuple[int, str, str, float | str]]:
    """Row, query, document and grade; a text in the grade's place says what is wrong."""
    with file.open(encoding="utf-8", newline="") as lines:
        for number, row in enumerate(csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE), start=1):
            if number == 1 and row[-1:] == ["score"]:
                continue
            try:
                query, document, grade = row
                yield number, query, document, float(grade)
            except ValueError:
                yield number, "", "", f"{row} is not query-id, corpus-id and score between tabs"
