"""Files that are the old or the new one, whole: for who reads meanwhile, after a kill, and after a power cut."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from verl.errors import UserError

UNFINISHED = ".writing"
"""Ending of the name that a file or folder has while it is written."""


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file's content so that a reader, or a restart, sees the old or the new content and nothing else."""
    unfinished = path.with_name(path.name + UNFINISHED)
    with unfinished.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def sync(path: Path) -> None:
    """Bring a file's content, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def new_folder(path: Path, key: str) -> Iterator[Path]:
    """A folder to write into, which is called ``path`` once the block ends without an error; otherwise nothing is left.

    Raises UserError, naming ``key``, if there is such a folder already.
    """
    if path.exists():
        raise UserError(f"{key}={path}: is there already; write another folder, or remove it")
    partial = path.with_name(path.name + UNFINISHED)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
