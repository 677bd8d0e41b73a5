"""Reads a corpus: one passage a row, every faulty row named before anything is served.

A passage is an id and its contents in FlashRAG's form, ``"Title"<newline>text``. Rows may instead have the columns
``title`` and ``text``; an id may be a number, or BEIR's ``_id``. Files are jsonl, parquet (``.parquet``) or
tab-separated with a header (``.tsv``, DPR's ``psgs_w100.tsv``), jsonl and tab-separated ones packed by gzip too. Blank
lines are skipped; everything else that is no passage is a fault.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from verl.errors import UserError

MAX_LISTED_FAULTS = 1000
PARQUET_BATCH_ROWS = 4096
GZIP_MAGIC = b"\x1f\x8b"
MAX_FIELD_CHARS = 2**24
"""Of a tab-separated field: the library's 131,072 are less than a long page has, and a quote left open is found."""


@dataclass(frozen=True, slots=True)
class Passage:
    """One row."""

    id: str
    contents: str

    def to_json(self) -> bytes:
        """The bytes that every reply shows for this passage."""
        return orjson.dumps({"id": self.id, "contents": self.contents})


@dataclass(frozen=True, slots=True)
class Numbered:
    """A passage, the number of its row, from 1, and all that stands there."""

    number: int
    passage: Passage
    fields: Mapping[str, Any]


@dataclass(slots=True)
class Faults:
    """Rows that are no passages, collected so that a user can mend them all at once."""

    path: Path
    listed: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, number: int, reason: str) -> None:
        """Note the row with this number (from 1)."""
        self.count += 1
        if len(self.listed) < MAX_LISTED_FAULTS:
            self.listed.append(f"{number} ({reason})")

    def raise_if_any(self) -> None:
        """Raise one UserError that lists them."""
        if self.count:
            more = f" and {self.count - len(self.listed)} more" if self.count > len(self.listed) else ""
            raise UserError(
                f"{self.path}: {self.count} faulty line(s): {', '.join(self.listed)}{more}; "
                'a line is {"id": "...", "contents": "\\"Title\\"\\ntext"} or has the columns id, title, text'
            )


class Corpus:
    """An open corpus file; use it with ``with``. Raises UserError if there is no such file."""

    def __init__(self, path: Path, faults: Faults) -> None:
        try:
            self._raw = path.open("rb")
            self._size = max(1, path.stat().st_size)
        except OSError as error:
            raise UserError(f"corpus={path}: {error.strerror}; give a file of passages") from error
        self._path = path
        self._faults = faults
        self._is_gzip = self._raw.peek(2)[:2] == GZIP_MAGIC

    def __enter__(self) -> Corpus:
        return self

    def __exit__(self, *_: object) -> None:
        self._raw.close()

    def fraction(self) -> float:
        """How much of the file has been read, 0 to 1."""
        return min(1.0, self._raw.tell() / self._size)

    def rows(self, skip: int = 0) -> Iterator[Numbered]:
        """The passages in order, after the first ``skip`` rows; rows that are none go to the faults."""
        suffix = Path(self._path.stem).suffix if self._path.suffix == ".gz" else self._path.suffix
        reader = {".parquet": self._parquet, ".tsv": self._tsv}.get(suffix, self._jsonl)
        for number, row in islice(enumerate(reader(), 1), skip, None):
            if row is None:
                continue
            try:
                fields = orjson.loads(row) if isinstance(row, bytes) else row
                yield Numbered(number, parse_row(fields), fields)
            except orjson.JSONDecodeError as error:
                self._faults.add(number, f"not JSON: {error}")
            except ValueError as error:
                self._faults.add(number, str(error))

    def _lines(self) -> Iterator[bytes]:
        """The lines, unpacked and without a byte order mark. Raises UserError if they cannot be unpacked."""
        lines: Iterable[bytes] = gzip.GzipFile(fileobj=self._raw) if self._is_gzip else self._raw
        try:
            for number, line in enumerate(lines):
                yield line if number else line.removeprefix(codecs.BOM_UTF8)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(f"corpus={self._path}: cannot be unpacked: {error}; fetch it again") from error

    def _jsonl(self) -> Iterator[Any]:
        for number, line in enumerate(self._lines()):
            if number == 0 and line.lstrip().startswith(b"["):
                raise UserError(
                    f"corpus={self._path}: a JSON array; write one passage a line: jq -c '.[]' FILE > FILE.jsonl"
                )
            yield line if line.strip() else None

    def _tsv(self) -> Iterator[Any]:
        csv.field_size_limit(MAX_FIELD_CHARS)
        rows = csv.DictReader((line.decode("utf-8", "replace") for line in self._lines()), delimiter="\t")
        try:
            yield from rows
        except csv.Error as error:
            raise UserError(f"corpus={self._path}: line {rows.line_num}: {error}; is a quote left open?") from error

    def _parquet(self) -> Iterator[Any]:
        import pyarrow.parquet

        try:
            file = pyarrow.parquet.ParquetFile(self._raw)
        except pyarrow.ArrowInvalid as error:
            raise UserError(f"corpus={self._path}: not a parquet file: {error}") from error
        for batch in file.iter_batches(PARQUET_BATCH_ROWS):
            yield from batch.to_pylist()


def read_passages(path: Path, faults: Faults) -> list[Passage]:
    """All passages of a corpus that fits in memory; a repeated id is a fault too."""
    passages: dict[str, Passage] = {}
    with Corpus(path, faults) as corpus:
        for row in corpus.rows():
            if row.passage.id in passages:
                faults.add(row.number, f"id {row.passage.id!r} for the second time")
            passages[row.passage.id] = row.passage
    return list(passages.values())


def parse_row(row: Any) -> Passage:
    """The passage in a row. Raises ValueError with a few words that say what is wrong."""
    if not isinstance(row, Mapping):
        raise ValueError(f"{type(row).__name__} instead of an object")
    identity = row.get("id", row.get("_id"))  # BEIR's word
    if isinstance(identity, bool) or not isinstance(identity, str | int) or identity == "":
        raise ValueError("no id" if identity is None else f"id is {identity!r}")
    contents = row.get("contents")
    if contents is None:
        contents = _from_columns(row)
    if not isinstance(contents, str):
        raise ValueError(f"contents is {type(contents).__name__}, not text")
    if not contents.strip():
        raise ValueError("contents is empty")
    return Passage(str(identity), contents)


def _from_columns(row: Mapping[str, Any]) -> str:
    title, text = row.get("title", ""), row.get("text")
    if text is None:
        raise ValueError("neither contents nor text")
    if not isinstance(title, str) or not isinstance(text, str):
        raise ValueError("title or text is not text")
    return f'"{title}"\n{text}'
