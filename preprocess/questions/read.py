"""Reads one split of a question set: FlashRAG's or KILT's jsonl, or the parquet files of a Hugging Face dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from preprocess.questions.kilt import flat
from search_agent.data import benchmark
from verl.data.load import parse_row, read_rows
from verl.data.tasks import Task
from verl.errors import UserError


@dataclass(frozen=True, slots=True)
class Question:
    """One usable row."""

    set: str
    split: str
    row: int
    """Its number in the split, from 0: the ``index`` of the published files."""
    task: Task

    @property
    def key(self) -> str:
        """What makes two questions the same: the text without case, spacing and question mark."""
        return " ".join(self.task.question.casefold().split()).rstrip("? ")


@dataclass(frozen=True, slots=True)
class Dropped:
    """One row that was left out."""

    set: str
    split: str
    row: int
    """Its number in the split, from 0."""
    reason: str


def files_of(source: Path, name: str, split: str) -> list[Path]:
    """The files of a split in order; none if the set has no such split."""
    kilt = source / name / f"{name}-{split}-kilt.jsonl"
    return benchmark.files_of(source / name, split) or ([kilt] if kilt.is_file() else [])


def first_split(source: Path, name: str, splits: Sequence[str]) -> str:
    """The first of ``splits`` that the set has. Raises UserError if it has none."""
    for split in splits:
        if files_of(source, name, split):
            return split
    raise UserError(
        f"{source / name}: has no {' or '.join(f'{split}.jsonl' for split in splits)} and no such parquet; "
        f"run `python -m preprocess.download --save_path {source.parent} {name}`, or set source="
    )


def read_split(source: Path, name: str, split: str) -> tuple[list[Question], list[Dropped]]:
    """Its usable rows in order, and the others with their reasons."""
    questions: list[Question] = []
    dropped: list[Dropped] = []
    number = -1
    for file in files_of(source, name, split):
        for _, row in read_rows(file):
            number += 1
            if isinstance(row, str):
                dropped.append(Dropped(name, split, number, row))
                continue
            task, faults = parse_row(flat(row))
            if task is None:
                dropped.append(Dropped(name, split, number, "; ".join(faults)))
            else:
                questions.append(Question(name, split, number, task))
    return questions, dropped
