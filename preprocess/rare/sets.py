"""RARE's data sets (arXiv 2503.23513) as its README takes them: one reader a set, from the files as they are published.

A reader yields every row of its source, as an ``Item`` or as the reason why it cannot be used. Statements are judged by
lettered options; documents are the set's own evidence, but for MedQA and PubMedQA, whose blocks are ranked later.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from verl.data.load import read_rows
from verl.errors import UserError

SetName = Literal["medqa", "pubmedqa", "pubhealth", "casehold", "finfact", "mmrait", "generic"]
Part = Literal["train", "test"]
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_BLOCK = re.compile(r"^(?=## source:)", re.MULTILINE)
_PUBHEALTH = (
    "true: all of it is so, and evidence bears it out",
    "false: it is not so, and evidence speaks against it",
    "mixture: part of it is so, and part is wrong or misleading",
    "unproven: there is too little evidence either way",
)


@dataclass(frozen=True, slots=True)
class Item:
    """One question with what is to be read for it."""

    id: str
    question: str
    gold: str
    """Letter of the right option."""
    documents: tuple[str, ...]
    """In the order in which they are shown, or to be ranked."""
    options: tuple[str, ...] = ()
    """Empty where the question spells them out itself."""
    images: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The question with its options, one a line."""
        lettered = (f"{letter}. {option}" for letter, option in zip(LETTERS, self.options, strict=False))
        return "\n".join([self.question.strip(), *lettered])


Rows = Iterator[tuple[Part, Item | str]]


@dataclass(frozen=True, slots=True)
class DataSet:
    """How a set is read, and what its prompt says."""

    read: Callable[[Path], Rows]
    field: str
    """What the expert of the prompt knows about."""
    ranked: bool = False
    """Whether a question's documents are blocks of which the nearest are shown."""


def medical(name: str) -> Callable[[Path], Rows]:
    """Rows of one name in the planner's files, whose retrieved blocks stand in a file for each question."""

    def read(source: Path) -> Rows:
        parts: tuple[tuple[str, Part], ...] = (("all_train", "train"), ("all_dev", "train"), ("all_test", "test"))
        for folder, part in parts:
            root = source / f"system=planner_addret,dataset={folder},debug=False"
            for row in _list(_found(root, "output_all.json")):
                if row.get("name") != name:
                    continue
                told = str((row.get("pred") or {}).get("doc_path") or "").replace("\\", "/")
                file = _under(root, told) if told else None
                if file is None:
                    yield part, "the file of its documents is not there" if told else "names no file of documents"
                    continue
                blocks = [block.strip() for block in _BLOCK.split(file.read_text(encoding="utf-8"))]
                yield part, _item(row, row.get("question"), row.get("gold"), filter(None, blocks), kept=LETTERS)

    return read


def pubhealth(source: Path) -> Rows:
    """Claims and articles (``pubhealth_bigbio_pairs``); training takes validation in."""
    letters = {"true": "A", "false": "B", "mixture": "C", "unproven": "D"}
    for part, row in _splits(source, train=("train", "validation"), test=("test",)):
        gold = letters.get(str(row.get("label")))
        yield part, _item(row, row.get("text_1"), gold, [row.get("text_2")], _PUBHEALTH, label=row.get("label"))


def casehold(source: Path) -> Rows:
    """Holdings to choose from; what is read is the citing text itself. Ids are numbered in each split alike."""
    for part, row in _splits(source, train=("train",), test=("test",)):
        options = [row.get(f"holding_{number}") for number in range(5)]
        label = str(row.get("label"))
        gold = LETTERS[int(label)] if label.isdigit() and int(label) < 5 else None
        named = {**row, "id": f"{part}-{row.get('example_id')}"}
        question = "Which holding is the one that the citing text refers to as <HOLDING>?"
        yield part, _item(named, question, gold, [row.get("citing_prompt")], options, label=label)


def finfact(source: Path) -> Rows:
    """Financial claims; one file, shuffled by seed 42, the first four fifths for training."""
    letters = {"true": "A", "false": "B", "NEI": "C", "neutral": "C"}  # the hub's newer files say neutral
    rows = [row for _, row in _splits(source, train=("train",), test=())]
    numbered = list(enumerate(rows))
    random.Random(42).shuffle(numbered)
    for place, (number, row) in enumerate(numbered):
        part: Part = "train" if place < int(0.8 * len(rows)) else "test"
        said = [each.get("sentence") for each in row.get("evidence") or [] if isinstance(each, Mapping)]
        evidence = [sentence for sentence in said if isinstance(sentence, str)]  # others are null and NaN
        options = ("true", "false", "not enough information")
        named = {**row, "id": f"finfact-{number}"}
        gold = letters.get(str(row.get("label")))
        yield part, _item(named, row.get("claim"), gold, evidence, options, label=row.get("label"))


def mmrait(source: Path) -> Rows:
    """M2RAG's fact verification: a document and its picture. Some labels are finer (``Support_Text``)."""
    options = ("Support", "Refute", "Insufficient")
    files: tuple[tuple[str, Part], ...] = (("train_data.jsonl", "train"), ("val_data.jsonl", "test"))
    for file, part in files:
        found = _found(source, file)
        for row in _rows(found):
            label = str(row.get("category") or row.get("label"))
            gold = next((LETTERS[n] for n, option in enumerate(options) if label.startswith(option)), None)
            picture = row.get("document_image")
            image = _under(found.parent, str(picture)) if picture else None
            item = _item(row, row.get("claim"), gold, [row.get("document")], options, label=label, image=image)
            yield part, item if image or isinstance(item, str) else "its picture is not there"


def generic(source: Path) -> Rows:
    """``id, question, documents, options, answer``: for sets of which nothing is published (CoVERT, BioASQ).

    ``documents`` is a text or a list; ``answer`` a letter, or one of the options in full.
    """
    for part, row in _splits(source, train=("train",), test=("test",)):
        options = row.get("options") or ()
        options = list(options.values()) if isinstance(options, Mapping) else list(options)
        answer, documents = str(row.get("answer") or "").strip(), row.get("documents")
        gold = LETTERS[options.index(answer)] if answer in options else answer if len(answer) == 1 else None
        texts = [documents] if isinstance(documents, str) else documents or []
        yield part, _item(row, row.get("question"), gold, texts, options, label=answer)


SETS: Mapping[SetName, DataSet] = {
    "medqa": DataSet(medical("medqa"), "medicine", ranked=True),
    "pubmedqa": DataSet(medical("pubmedqa"), "medicine", ranked=True),
    "pubhealth": DataSet(pubhealth, "public health and the checking of facts"),
    "casehold": DataSet(casehold, "law"),
    "finfact": DataSet(finfact, "finance and the checking of facts"),
    "mmrait": DataSet(mmrait, "the checking of facts"),
    "generic": DataSet(generic, "the subject of the question", ranked=True),
}


def _item(
    row: Mapping[str, Any],
    question: Any,
    gold: Any,
    documents: Any,
    options: Sequence[Any] = (),
    *,
    label: Any = None,
    kept: str = "",
    image: Path | None = None,
) -> Item | str:
    """The item, or what is wrong with the row. ``kept`` are letters that the row may name itself."""
    texts = tuple(text.strip() for text in documents if isinstance(text, str) and text.strip())
    allowed = kept or LETTERS[: len(options)] or LETTERS
    if row.get("id") in (None, ""):
        return "has no id"
    if not isinstance(question, str) or not question.strip():
        return "has no question"
    if any(not isinstance(option, str) or not option.strip() for option in options):
        return "has an empty option"
    if not isinstance(gold, str) or len(gold) != 1 or gold not in allowed:
        return f"its label is {label if label is not None else gold!r}, which is none of the options"
    if not texts:
        return "has no document"
    return Item(str(row["id"]), question, gold, texts, tuple(options), (str(image),) if image else ())


def _splits(source: Path, *, train: Sequence[str], test: Sequence[str]) -> Iterator[tuple[Part, dict[str, Any]]]:
    parts: dict[Part, Sequence[str]] = {"train": train, "test": test}
    for part, names in parts.items():
        for name in names:
            files = sorted({*source.glob(f"{name}*.parquet"), *source.glob(f"{name}/*.parquet")})
            for file in files or [_found(source, f"{name}.jsonl", f"{name}.json")]:
                yield from ((part, row) for row in _rows(file))


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    if file.suffix == ".json":
        yield from _list(file)
        return
    for number, row in read_rows(file):
        if isinstance(row, str):
            raise UserError(f"{file}, row {number}: {row}")
        yield row


def _list(file: Path) -> list[dict[str, Any]]:
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file}: not JSON in UTF-8 ({error})") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{file}: not a list of objects")
    return rows


def _found(folder: Path, *names: str) -> Path:
    """The first of these files that there is, in the folder or once below it."""
    for name in names:
        for file in [folder / name, *sorted(folder.glob(f"*/{name}"))]:
            if file.is_file():
                return file
    raise UserError(f"{folder}: has no {' or '.join(names)}; download and unpack the set, or set source=")


def _under(root: Path, told: str) -> Path | None:
    """The file that a path of the authors' machine means: its longest end that exists under ``root``; None if none."""
    parts = [part for part in told.split("/") if part not in ("", ".", "..")]
    ends = (root.joinpath(*parts[start:]) for start in range(len(parts)))
    return next((path for path in ends if path.is_file()), None)
