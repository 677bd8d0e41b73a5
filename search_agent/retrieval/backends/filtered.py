"""Search among the passages that a request selects by metadata: ``{"source": "news", "date.from": "2018-01-01"}``.

An option ``NAME`` asks for the passages with that value, ``NAME.from`` and ``NAME.to`` for those between two values,
ends included: numbers by size, texts by their characters, as dates of the form ``2018-12-31`` are in order. One without
the value is never selected. The back end is asked ever deeper until enough of what it found is selected.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from search_agent.retrieval.backends.backend import Backend, Hit, Selective
from search_agent.retrieval.index.corpus import Corpus, Faults
from verl.errors import UserError

DEEPER = 4
"""Times as many hits are asked for where too few were selected."""
MISSING = -1


@dataclass(frozen=True, slots=True)
class Column:
    """One field of every passage."""

    values: npt.NDArray[Any]
    """Its distinct values in order, float64 or text."""
    places: npt.NDArray[np.int32]
    """``[passages]``: where the value of each stands among them, ``MISSING`` where it has none."""

    def between(self, low: Any, high: Any) -> tuple[int, int]:
        """The places of the values from ``low`` to ``high``, None for no bound. Raises ValueError on another type."""
        is_text = self.values.dtype.kind == "U"
        for bound in (low, high):
            if bound is not None and isinstance(bound, str) != is_text:
                raise ValueError(f"{bound!r} is not a {'text' if is_text else 'number'}")
        first = 0 if low is None else int(np.searchsorted(self.values, low, side="left"))
        last = len(self.values) if high is None else int(np.searchsorted(self.values, high, side="right"))
        return first, last

    def manifest(self) -> dict[str, Any]:
        """What ``/info`` says of it, all that may change an answer included."""
        ends = {"from": self.values[0].item(), "to": self.values[-1].item()} if len(self.values) else {}
        digest = hashlib.sha256(self.places.tobytes() + repr(self.values.tolist()).encode()).hexdigest()
        missing = int((self.places == MISSING).sum())
        return {"values": len(self.values), **ends, "missing": missing, "sha256": digest}


def read_columns(corpus: Path, names: Sequence[str]) -> dict[str, Column]:
    """The fields of each passage of a corpus that has been checked, at the top of its row or under ``metadata``.

    Raises UserError where a field is in no row, or holds texts and numbers both.
    """
    found: dict[str, list[Any]] = {name: [] for name in names}
    with Corpus(corpus, Faults(corpus)) as source:
        for row in source.rows():
            metadata = row.fields.get("metadata")
            fields = {**metadata, **row.fields} if isinstance(metadata, Mapping) else row.fields
            for name in names:
                found[name].append(fields.get(name))
    return {name: _column(name, found[name]) for name in names}


def _column(name: str, cells: Sequence[Any]) -> Column:
    held = [number for number, cell in enumerate(cells) if cell is not None]
    kinds = {float if isinstance(cells[number], int | float) else type(cells[number]) for number in held}
    if kinds not in ({str}, {float}):
        fault = "is neither text in every row nor a number in every row" if kinds else "is in no row of the corpus"
        raise UserError(f"filters: {name} {fault}; name another field")
    values, places = np.unique(np.asarray([cells[number] for number in held], kinds.pop()), return_inverse=True)
    whole = np.full(len(cells), MISSING, np.int32)
    whole[held] = places
    return Column(values, whole)


class Filtered(Selective):
    """Any back end of ours over the passages of a corpus."""

    def __init__(self, inner: Backend, columns: Mapping[str, Column]) -> None:
        self._inner, self._columns = inner, columns
        self.max_batch = inner.max_batch

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        return self._inner.search(queries, k)

    def search_selected(self, queries: Sequence[str], k: int, options: Mapping[str, Any]) -> list[list[Hit]]:
        chosen = self._chosen(options)
        wanted, depth, asked = min(k, int(chosen.sum())), k, list(range(len(queries)))
        out: list[list[Hit]] = [[] for _ in queries]
        while asked and wanted:
            rows = zip(asked, self._inner.search([queries[number] for number in asked], depth), strict=True)
            asked = []
            for number, hits in rows:
                out[number] = [hit for hit in hits if chosen[hit.doc]][:k]
                if len(out[number]) < wanted and len(hits) == depth:
                    asked.append(number)
            depth = min(DEEPER * depth, len(chosen))
        return out

    def check(self, options: Mapping[str, Any]) -> None:
        for name, bounds in _bounds(options).items():
            self._places(name, bounds)

    def count(self, options: Mapping[str, Any]) -> int:
        return int(self._chosen(options).sum())

    def manifest(self) -> dict[str, Any]:
        columns = {name: column.manifest() for name, column in self._columns.items()}
        return {**self._inner.manifest(), "filters": columns}

    def implementation(self) -> str:
        return self._inner.implementation()

    def _chosen(self, options: Mapping[str, Any]) -> npt.NDArray[np.bool_]:
        """``[passages]``: whether the options select it."""
        chosen = np.ones(len(next(iter(self._columns.values())).places), np.bool_)
        for name, bounds in _bounds(options).items():
            places, (first, last) = self._columns[name].places, self._places(name, bounds)
            chosen &= (places >= first) & (places < last)
        return chosen

    def _places(self, name: str, bounds: tuple[Any, Any]) -> tuple[int, int]:
        if name not in self._columns:
            raise ValueError(f"options: {name!r} is no filter of this corpus; it has {', '.join(self._columns)}")
        try:
            return self._columns[name].between(*bounds)
        except ValueError as error:
            raise ValueError(f"options: {name}: {error}") from error


def _bounds(options: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The lowest and highest value of each field, None for no bound."""
    bounds: dict[str, tuple[Any, Any]] = {}
    for option, value in options.items():
        name, _, end = option.rpartition(".")
        low, high = bounds.get(name, (None, None))
        if end == "from":
            bounds[name] = (value, high)
        elif end == "to":
            bounds[name] = (low, value)
        else:
            bounds[option] = (value, value)
    return bounds
