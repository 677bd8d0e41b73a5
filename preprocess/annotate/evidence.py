"""Questions with the sentences that their answers stand on, from the published files of multi-hop sets."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl.data.load import read_rows
from verl.errors import UserError


@dataclass(frozen=True, slots=True)
class Annotated:
    """One question, its answer, and its gold sentences (or paragraphs), each once."""

    id: str
    question: str
    answer: str
    evidence: tuple[str, ...]


def read_questions(path: Path) -> Iterator[tuple[int, Annotated | str]]:
    """Number (from 1) and question of each row, or the reason why it is none.

    A ``.json`` list (HotpotQA, 2WikiMultihopQA), ``.jsonl`` or ``.parquet`` (MuSiQue; FlashRAG, whose ``metadata``
    holds what the published rows do; rows with ``evidence``, a list of texts). Raises UserError if it is none of these.
    """
    for number, row in _rows(path):
        try:
            yield number, row if isinstance(row, str) else _question(row)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            yield number, f"cannot be read ({type(error).__name__}: {error})"


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    if path.suffix != ".json":
        yield from read_rows(path)
        return
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"questions={path}: cannot be read as JSON ({error})") from error
    if not isinstance(rows, list):
        raise UserError(f"questions={path}: {type(rows).__name__}, not a list of questions")
    yield from enumerate(rows, 1)


def _question(row: Mapping[str, Any]) -> Annotated | str:
    golds = row.get("golden_answers") or [row.get("answer")]
    identity = row["_id"] if "_id" in row else row["id"]
    texts = (row["question"], golds[0])
    if not all(isinstance(text, str) and text.strip() for text in texts):
        return "its question or its answer is no text"
    evidence = _evidence(row if row.get("metadata") is None else {**row["metadata"], **row})
    if not evidence:
        return "it names no evidence"
    return Annotated(str(identity), texts[0].strip(), texts[1].strip(), evidence)


def _evidence(row: Mapping[str, Any]) -> tuple[str, ...]:
    if "evidence" in row:
        found = list(row["evidence"])
    elif "paragraphs" in row:
        found = [part["paragraph_text"] for part in row["paragraphs"] if part["is_supporting"]]
    else:
        found = _supporting(row["context"], row["supporting_facts"])
    if not all(isinstance(text, str) for text in found):
        raise ValueError("its evidence is no list of texts")
    return tuple(dict.fromkeys(" ".join(text.split()) for text in found if text.strip()))


def _supporting(context: Any, facts: Any) -> list[str]:
    """Pairs of title and number, or the two columns that Hugging Face makes of them. Numbers past a page's end, which
    HotpotQA has, name nothing."""
    if isinstance(context, Mapping):
        context = list(zip(context["title"], context.get("sentences", context.get("content")), strict=True))
        facts = list(zip(facts["title"], facts.get("sent_id", facts.get("sent_idx")), strict=True))
    pages = dict(context)
    return [pages[title][number] for title, number in facts if 0 <= number < len(pages[title])]
