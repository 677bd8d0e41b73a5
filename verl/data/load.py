"""Reads a data set into tasks.

Rows are FlashRAG's (``id, question, golden_answers, metadata``), as jsonl or parquet, or those of verl-style parquet
(``prompt``, or the question in ``extra_info``; the answers in ``reward_model.ground_truth`` or its ``target``).

A data set is read whole or not at all: every faulty row is found before anything is raised, so that a user can mend a
file at once.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from verl.data.pictures import under
from verl.data.tasks import Task
from verl.errors import UserError

MAX_LISTED_FAULTS = 20
Rows = Iterator[tuple[int, Any]]
"""Number (from 1) and content of each row; a str in the content's place says why it cannot be read."""
_HERE = Path()
_NEEDED = (
    'a row has id, question and golden_answers, or prompt and reward_model={"ground_truth": {"target": [...]}} '
    "with an id, extra_info.index or extra_info.id"
)


def load_tasks(path: Path | str, limit: int | None = None, *, prompts: bool = False) -> list[Task]:
    """The tasks of a ``.jsonl`` or ``.parquet`` file in its order; the first ``limit`` of them if that is given.

    With ``prompts`` the column ``prompt`` of every row opens its episodes as it stands (``Task.prompt``); without, only
    that of a row that has no ``question``.

    The id is the row's, with ``data_source/`` before it where the row names its data set, because FlashRAG numbers
    the rows of every data set alike. ``images`` holds paths below the file's folder, ``data:`` URLs, or structs of
    ``bytes`` and ``path`` as Hugging Face writes them. Columns that are no part of a task are kept in its metadata.
    Raises UserError: no such file, another kind of file, or one message that lists the faulty rows of the whole file.
    """
    return tasks_of(read_rows(Path(path)), str(path), prompts=prompts)[:limit]


def tasks_of(rows: Rows, where: str, *, prompts: bool = False) -> list[Task]:
    """The tasks of numbered rows, which are those of the file ``where``; a str in a row's place is what is wrong.

    Raises UserError as ``load_tasks`` does.
    """
    tasks: list[Task] = []
    faults: list[str] = []
    first_row: dict[str, int] = {}
    for number, row in rows:
        if isinstance(row, str):
            faults.append(f"row {number}: {row}")
            continue
        task, wrong = parse_row(row, prompts=prompts, folder=Path(where).parent)
        faults += [f"row {number}, {fault}" for fault in wrong]
        if task is None:
            continue
        if task.id in first_row:
            faults.append(f"row {number}, id: {task.id!r} stands in row {first_row[task.id]} too")
        first_row.setdefault(task.id, number)
        tasks.append(task)
    if faults:
        raise UserError("\n  ".join([f"{where}: cannot be used as a data set; {_NEEDED}", *_listed(faults)]))
    if not tasks:
        raise UserError(f"{where}: holds no row; {_NEEDED}")
    return tasks


def _listed(faults: list[str]) -> list[str]:
    more = len(faults) - MAX_LISTED_FAULTS
    return [*faults[:MAX_LISTED_FAULTS], *([f"and {more} more, {len(faults)} faults in all"] if more > 0 else [])]


def read_rows(file: Path) -> Rows:
    """The rows of a file; one object a line is ``.json`` too, as FlashRAG has it.

    Raises UserError if the file is none or of another kind.
    """
    if not file.is_file():
        raise UserError(f"{file}: no such file; give a .jsonl or .parquet file of questions")
    if file.suffix in (".jsonl", ".json"):
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
                json.dumps(row, ensure_ascii=False).encode()  # JSON may spell half of a character, which no text has
            except UnicodeEncodeError as error:
                yield number, f"holds half of a character ({error.object[error.start]!a}), which UTF-8 cannot write"
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


def parse_row(row: Mapping[str, Any], *, prompts: bool = False, folder: Path = _HERE) -> tuple[Task | None, list[str]]:
    """The task in a row, or None with what is wrong, one ``column: reason`` each. ``folder`` holds the row's file."""
    faults: list[str] = []
    identity = _identity(row, faults)
    question, prompt = _texts(row, prompts, faults)
    answers = _answers(row, faults)
    try:
        images = images_of(row, folder)
    except ValueError as error:
        faults.append(f"images: {error}")
    kept, graded = row.get("metadata") or {}, {} if faults else _beside_the_answers(row)
    if not isinstance(kept, Mapping):
        faults.append(f"metadata: {type(kept).__name__} instead of an object")
    if faults:
        return None, faults
    others = {
        key: value
        for key, value in row.items()
        if key not in ("id", "question", "golden_answers", "metadata", "reward_model", "images") and value is not None
    }
    if prompt is not None:
        others.pop("prompt", None)
    return Task(identity, question, answers, {**graded, **others, **kept}, prompt, images), []


def _identity(row: Mapping[str, Any], faults: list[str]) -> str:
    identity, source = row.get("id"), row.get("data_source")
    if identity is None:
        extra = row.get("extra_info") or {}
        if isinstance(extra, Mapping):
            identity = extra.get("id") if extra.get("index") is None else extra["index"]
    if isinstance(identity, bool) or not isinstance(identity, str | int) or not str(identity).strip():
        faults.append("id: missing" if identity is None else f"id: {identity!r} is neither a text nor a whole number")
    return f"{source}/{identity}" if source else str(identity)


def _texts(row: Mapping[str, Any], prompts: bool, faults: list[str]) -> tuple[str, str | None]:
    """The question, and the rendered prompt if that is to open the episode; a row without a question has only that."""
    question, prompt, extra = row.get("question"), None, row.get("extra_info")
    if question is None and isinstance(extra, Mapping):
        question = extra.get("question")
    if prompts or (question is None and row.get("prompt") is not None):
        prompt = _text(_only_message(row.get("prompt")), "prompt", row, faults)
    if question is None and prompt is not None:
        return prompt, prompt
    return _text(question, "question", row, faults), prompt


def _text(value: Any, column: str, row: Mapping[str, Any], faults: list[str]) -> str:
    if value is None:
        faults.append(f"{column}: missing (the row has {', '.join(row) or 'no column'})")
    elif isinstance(value, list):
        faults.append(f"{column}: {len(value)} messages; one message of the user, or a text, can be used")
    elif not isinstance(value, str) or not value.strip():
        faults.append(f"{column}: {'empty' if isinstance(value, str) else f'{type(value).__name__}, not text'}")
    return str(value)


def _only_message(prompt: Any) -> Any:
    """The text of a prompt of one user message; any other prompt as it is, to be told as a fault unless it is text."""
    alone = prompt[0] if isinstance(prompt, list) and len(prompt) == 1 else None
    return alone.get("content") if isinstance(alone, Mapping) and alone.get("role") == "user" else prompt


def _answers(row: Mapping[str, Any], faults: list[str]) -> tuple[str, ...]:
    answers, column = row.get("golden_answers"), "golden_answers"
    if answers is None and row.get("reward_model") is not None:
        answers, column = row["reward_model"], "reward_model.ground_truth.target"
        answers = answers.get("ground_truth") if isinstance(answers, Mapping) else None
        answers = answers.get("target") if isinstance(answers, Mapping) else answers
    if isinstance(answers, str):
        answers = [answers]
    if not isinstance(answers, Sequence) or not answers:
        faults.append(f"{column}: no answer, so nothing could be right" if not answers else f"{column}: not a list")
        return ()
    if not all(isinstance(answer, str) and answer.strip() for answer in answers):
        faults.append(f"{column}: holds an answer that is empty or no text")
        return ()
    return tuple(answers)


def images_of(row: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
    """The column ``images`` of a row in a file of ``folder``, as ``Task.images`` has them.

    Raises ValueError on what is no picture's path below that folder (``verl.data.pictures.under``), nor its bytes.
    """
    value, found = row.get("images"), []
    for image in value if isinstance(value, list) else [] if value is None else [value]:
        held, path = (image.get("bytes"), image.get("path")) if isinstance(image, Mapping) else (None, image)
        if isinstance(held, bytes):
            path = f"data:application/octet-stream;base64,{base64.b64encode(held).decode()}"
        if not isinstance(path, str) or not path:
            raise ValueError(f"{type(image).__name__} is neither a path nor the bytes of an image")
        found.append(under(folder, path))
    return tuple(found)


def _beside_the_answers(row: Mapping[str, Any]) -> dict[str, Any]:
    """What ``reward_model.ground_truth`` holds besides ``target`` (graded relevance, say): kept as metadata.

    A table gives every row the keys of all rows: those without a value are left out.
    """
    reward = row.get("reward_model")
    truth = reward.get("ground_truth") if isinstance(reward, Mapping) else None
    return _with_values(truth) if isinstance(truth, Mapping) else {}


def _with_values(values: Mapping[str, Any]) -> dict[str, Any]:
    nested = {key: _with_values(value) if isinstance(value, Mapping) else value for key, value in values.items()}
    return {key: value for key, value in nested.items() if value is not None and key != "target"}
