"""Reads a data set into tasks.

Rows are FlashRAG's (``id, question, golden_answers, metadata``), as jsonl or parquet, or those of verl-style parquet
(``prompt``, ``reward_model.ground_truth.target``). A data set is read whole or not at all: every faulty row is found
before anything is raised, so that a user can mend a file at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from verl.data.tasks import Task
from verl.errors import UserError

MAX_LISTED_FAULTS = 20
_NEEDED = (
    'a row has id, question and golden_answers, or prompt and reward_model={"ground_truth": {"target": [...]}} '
    "with an id or extra_info.index"
)


def load_tasks(path: Path | str, limit: int | None = None) -> list[Task]:
    """The tasks of a ``.jsonl`` or ``.parquet`` file in its order; the first ``limit`` of them if that is given.

    The id is the row's, with ``data_source/`` before it where the row names its data set, because FlashRAG numbers
    the rows of every data set alike. Columns that are no part of a task are kept in its metadata.
    Raises UserError: no such file, another kind of file, or one message that lists the faulty rows of the whole file.
    """
    file = Path(path)
    tasks: list[Task] = []
    faults: list[str] = []
    first_row: dict[str, int] = {}
    for number, row in read_rows(file):
        if isinstance(row, str):
            faults.append(f"row {number}: {row}")
            continue
        task, wrong = parse_row(row)
        faults += [f"row {number}, {fault}" for fault in wrong]
        if task is None:
            continue
        if task.id in first_row:
            faults.append(f"row {number}, id: {task.id!r} stands in row {first_row[task.id]} too")
        first_row.setdefault(task.id, number)
        tasks.append(task)
    if faults:
        raise UserError("\n  ".join([f"{file}: cannot be used as a data set; {_NEEDED}", *_listed(faults)]))
    if not tasks:
        raise UserError(f"{file}: holds no row; {_NEEDED}")
    return tasks[:limit]


def _listed(faults: list[str]) -> list[str]:
    more = len(faults) - MAX_LISTED_FAULTS
    return [*faults[:MAX_LISTED_FAULTS], *([f"and {more} more, {len(faults)} faults in all"] if more > 0 else [])]


def read_rows(file: Path) -> Iterator[tuple[int, Any]]:
    """Number (from 1) and content of each row; the content is a str, the reason, where it cannot be read.

    Raises UserError if the file is none or of another kind.
    """
    if not file.is_file():
        raise UserError(f"{file}: no such file; give a .jsonl or .parquet file of questions")
    if file.suffix == ".jsonl":
        yield from _json_lines(file)
    elif file.suffix == ".parquet":
        yield from _parquet_rows(file)
    else:
        raise UserError(f"{file}: must end in .jsonl or .parquet")


def _json_lines(file: Path) -> Iterator[tuple[int, Any]]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                yield number, f"is not JSON in UTF-8 ({error})"
            else:
                yield number, row if isinstance(row, dict) else f"is {type(row).__name__}, not an object"


def _parquet_rows(file: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as parquet:
            number = 0
            for batch in parquet.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except pa.ArrowException as error:
        raise UserError(f"{file}: cannot be read as parquet ({str(error).splitlines()[0]})") from error


def parse_row(row: Mapping[str, Any]) -> tuple[Task | None, list[str]]:
    """The task in a row, or None with what is wrong, one ``column: reason`` each."""
    faults: list[str] = []
    identity = _identity(row, faults)
    question = _question(row, faults)
    answers = _answers(row, faults)
    kept = row.get("metadata") or {}
    if not isinstance(kept, Mapping):
        faults.append(f"metadata: {type(kept).__name__} instead of an object")
    if faults:
        return None, faults
    others = {
        key: value
        for key, value in row.items()
        if key not in ("id", "question", "golden_answers", "metadata", "reward_model") and value is not None
    }
    return Task(identity, question, answers, {**others, **kept}), []


def _identity(row: Mapping[str, Any], faults: list[str]) -> str:
    identity, source = row.get("id"), row.get("data_source")
    if identity is None:
        extra = row.get("extra_info") or {}
        identity = extra.get("index") if isinstance(extra, Mapping) else None
    if isinstance(identity, bool) or not isinstance(identity, str | int) or not str(identity).strip():
        faults.append("id: missing" if identity is None else f"id: {identity!r} is neither a text nor a whole number")
    return f"{source}/{identity}" if source else str(identity)


def _question(row: Mapping[str, Any], faults: list[str]) -> str:
    """The question, or, where the row has only a rendered prompt, that prompt's one user message."""
    question, column = row.get("question"), "question"
    if question is None and row.get("prompt") is not None:
        question, column = _user_message(row["prompt"]), "prompt"
    if question is None:
        faults.append(f"{column}: missing (the row has {', '.join(row) or 'no column'})")
    elif not isinstance(question, str) or not question.strip():
        faults.append(f"{column}: {'empty' if isinstance(question, str) else f'{type(question).__name__}, not text'}")
    return str(question)


def _user_message(prompt: Any) -> Any:
    messages = prompt if isinstance(prompt, list) else []
    users = [m.get("content") for m in messages if isinstance(m, Mapping) and m.get("role") == "user"]
    return users[0] if len(users) == 1 else prompt


def _answers(row: Mapping[str, Any], faults: list[str]) -> tuple[str, ...]:
    answers, column = row.get("golden_answers"), "golden_answers"
    if answers is None and row.get("reward_model") is not None:
        answers, column = row["reward_model"], "reward_model.ground_truth.target"
        for key in ("ground_truth", "target"):
            answers = answers.get(key) if isinstance(answers, Mapping) else None
    if isinstance(answers, str):
        answers = [answers]
    if not isinstance(answers, Sequence) or not answers:
        faults.append(f"{column}: no answer, so nothing could be right" if not answers else f"{column}: not a list")
        return ()
    if not all(isinstance(answer, str) and answer.strip() for answer in answers):
        faults.append(f"{column}: holds an answer that is empty or no text")
        return ()
    return tuple(answers)
