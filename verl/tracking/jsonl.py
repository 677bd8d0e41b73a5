"""``metrics.jsonl``: one line a call, ``{"step", "time", ...metrics}``.

A line is in the kernel's hands when ``log`` returns, so a killed process loses none; the disk has it within seconds. A
number that is not finite is written as null, which every JSON reader takes.
"""

from __future__ import annotations

import errno
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from verl.durable import write_atomically

SYNC_EVERY_S = 5.0
"""How much a power cut may cost. Syncing each of many quick steps would cost more than the steps."""


class JsonlFile:
    """Appends rows of steps; what a killed process wrote from the resumed step on is cut away at the first call."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None
        self._synced = 0.0

    def append(self, step: int, row: Mapping[str, Any]) -> None:
        """Append one line, ``step`` first."""
        if self._file is None:
            cut_from(self._path, step, row)
            self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        line = (json.dumps({"step": step, **row}) + "\n").encode()
        written = os.write(self._file, line)
        if written < len(line):
            raise OSError(errno.ENOSPC, f"only {written} of {len(line)} bytes were written", str(self._path))
        if time.monotonic() - self._synced > SYNC_EVERY_S:
            os.fsync(self._file)
            self._synced = time.monotonic()

    def close(self) -> None:
        """Bring the file to the disk."""
        if self._file is not None:
            os.fsync(self._file)
            os.close(self._file)
            self._file = None


class JsonlTracker(JsonlFile):
    """Metrics as rows."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one line."""
        numbers = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self.append(step, {"time": round(time.time(), 3), **numbers})


def cut_from(path: Path, step: int, row: Mapping[str, Any]) -> None:
    """Drop what a killed process wrote from ``row`` of ``step`` on, and a last line that was cut off in writing.

    Several rows may have one step, an evaluation after the step's own: the row that is repeated is known by its names.
    So a run that goes on with the evaluation after step 12 keeps the row of step 12 itself.
    """
    if not path.exists():
        return
    kept = []
    for old, line in _rows(path):
        if old["step"] > step or (old["step"] == step and not old.keys().isdisjoint(row.keys() - {"step", "time"})):
            break
        kept.append(line)
    text = "".join(f"{line}\n" for line in kept)
    if text != path.read_text():
        write_atomically(path, text)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file, in order; a last line that was cut off in writing is left out."""
    return [row for row, _ in _rows(path)]


def _rows(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines, 1):
        try:
            yield json.loads(line), line
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise ValueError(f"{path}, line {number}: not JSON ({error})") from error
