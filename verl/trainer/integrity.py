"""Whether a checkpoint is what was written: sizes and checksums of its files, kept beside them.

A rename makes a checkpoint appear whole, but nothing keeps it so: a disk that lies about a flush, a copy that was cut
short. Loading half a file would fail late and unclearly, or not at all.
"""

from __future__ import annotations

import json
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SEAL = "files.json"
_CHUNK = 1 << 22


def make_seal(folder: Path) -> str:
    """The text of the seal: size and CRC-32 of each file in ``folder``, by its relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SEAL)
    with ThreadPoolExecutor(8) as threads:  # files of the ranks side by side; checksums let go of the interpreter
        sums = list(threads.map(_checksum, files))
    record = {str(file.relative_to(folder)): [file.stat().st_size, crc] for file, crc in zip(files, sums, strict=True)}
    return json.dumps(record, indent=1) + "\n"


def find_damage(folder: Path) -> str | None:
    """What is wrong with the first file that is not as it was sealed; None if all are, or there is no seal."""
    seal = folder / SEAL
    if not seal.exists():
        return None  # of a version before there were seals
    try:
        record: dict[str, list[int]] = json.loads(seal.read_text())
    except ValueError:
        return f"{SEAL} is not JSON"
    for name, (size, crc) in record.items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size:,} bytes, {size:,} were written"
        if _checksum(file) != crc:
            return f"the content of {name} has changed since it was written"
    return None


def _checksum(file: Path) -> int:
    crc = 0
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc
