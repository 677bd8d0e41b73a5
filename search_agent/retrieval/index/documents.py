"""The passages of a served corpus as JSON bytes, ready to be spliced into a reply without parsing."""

from __future__ import annotations

import mmap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from search_agent.retrieval.backends.backend import Hit

DATA_NAME = "documents.jsonl"
OFFSETS_NAME = "documents.offsets.npy"


class Documents:
    """Passage number i is ``data[offsets[i] : offsets[i + 1]]``, one JSON object and a newline."""

    def __init__(self, data: bytes | mmap.mmap, offsets: npt.NDArray[np.int64]) -> None:
        self._data = data
        self._offsets = offsets

    @classmethod
    def from_rows(cls, rows: Iterable[bytes]) -> Documents:
        """Hold JSON objects in memory."""
        lines = [row + b"\n" for row in rows]
        offsets = np.zeros(len(lines) + 1, np.int64)
        np.cumsum([len(line) for line in lines], out=offsets[1:])
        return cls(b"".join(lines), offsets)

    @classmethod
    def open(cls, folder: Path) -> Documents:
        """Map the files of an index."""
        with (folder / DATA_NAME).open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return cls(data, np.asarray(np.load(folder / OFFSETS_NAME, mmap_mode="r")))

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def raw(self, number: int) -> bytes:
        """The JSON object of a passage. Raises IndexError outside the corpus: -1 is no passage."""
        if not 0 <= number < len(self):
            raise IndexError(f"passage {number} of {len(self)}")
        return self._data[self._offsets[number] : self._offsets[number + 1] - 1]

    def of(self, hit: Hit) -> bytes:
        """The JSON object of the passage that was found. Raises IndexError as ``raw`` does."""
        return self.raw(hit.doc) if hit.passage is None else hit.passage

    def id_of(self, hit: Hit) -> bytes:
        """The id of the passage that was found, as JSON. Raises IndexError as ``raw`` does."""
        raw = self.of(hit)  # an unescaped quote ends a string: this one ends the id, which stands first
        return raw[len(b'{"id":') : raw.index(b'","contents":') + 1]

    def contents_of(self, hit: Hit) -> str:
        """The title and text that was found."""
        contents: str = orjson.loads(self.of(hit))["contents"]
        return contents

    def parsed(self, number: int) -> dict[str, Any]:
        """The same as a dict with ``id`` and ``contents``."""
        row: dict[str, Any] = orjson.loads(self.raw(number))
        return row
