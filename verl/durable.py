"""Files that are the old or the new one, whole: for who reads meanwhile, after a kill, and after a power cut."""

from __future__ import annotations

import os
from pathlib import Path

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
