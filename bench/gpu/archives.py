"""A tree of files as archives of a bounded size, which unpack over one another with ``tar -xJf``.

Files are compressed in units (the small files of a package together, a large file alone), each once; an archive is
some units, one after the other, for streams of xz may follow one another. So sizes are known before they are put
together.
"""

from __future__ import annotations

import io
import lzma
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

LIMIT = 44 << 20
"""Bytes of an archive."""
LARGE = 4 << 20
"""Bytes from which on a file is a unit alone."""
_UNIT = 64 << 20
"""Bytes of small files in a unit, before compression: three quarters at most remain even of what hardly compresses."""


def units(sizes: Mapping[str, int]) -> list[list[str]]:
    """Files (name, bytes) in units: those of one top folder together, in order of name."""
    found: list[list[str]] = []
    small: dict[str, list[list[str]]] = {}
    room: dict[str, int] = {}
    for name in sorted(sizes):
        top = "/".join(name.split("/")[:2])
        if sizes[name] >= LARGE:
            found.append([name])
            continue
        if room.get(top, -1) < sizes[name]:
            small.setdefault(top, []).append([])
            room[top] = _UNIT
        small[top][-1].append(name)
        room[top] -= sizes[name]
    return found + [unit for of in small.values() for unit in of]


def pack(sizes: Sequence[int], limit: int = LIMIT) -> list[list[int]]:
    """Which units go into which archive: the largest first, each into the first archive that has room.

    Raises ValueError if a unit is larger than an archive.
    """
    if sizes and max(sizes) > limit:
        raise ValueError(f"a unit of {max(sizes):,} bytes, compressed, does not fit an archive of {limit:,}")
    archives: list[list[int]] = []
    free: list[int] = []
    for unit in sorted(range(len(sizes)), key=lambda unit: -sizes[unit]):
        place = next((i for i, room in enumerate(free) if room >= sizes[unit]), None)
        if place is None:
            place = len(archives)
            archives.append([])
            free.append(limit)
        archives[place].append(unit)
        free[place] -= sizes[unit]
    return archives


def write(tree: Path, out: Path, *, limit: int = LIMIT, workers: int = 2) -> list[Path]:
    """Every file under ``tree`` into ``out/sleuth-1.tar.xz`` and so on; none is larger than ``limit`` bytes."""
    files = {str(path.relative_to(tree)): path for path in tree.rglob("*") if path.is_file() and not path.is_symlink()}
    grouped = units({name: path.stat().st_size for name, path in files.items()})
    with ProcessPoolExecutor(workers) as pool:
        packed = list(pool.map(partial(_compressed, tree), grouped))
    end = lzma.compress(bytes(2 * tarfile.BLOCKSIZE))
    out.mkdir(parents=True, exist_ok=True)
    archives = []
    for number, members in enumerate(pack([len(unit) for unit in packed], limit - len(end)), start=1):
        archive = out / f"sleuth-{number}.tar.xz"
        archive.write_bytes(b"".join([*(packed[unit] for unit in members), end]))
        archives.append(archive)
    return archives


def _compressed(tree: Path, names: Iterable[str]) -> bytes:
    """The files as members of a tar file that has not ended yet."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for name in names:
            tar.add(tree / name, arcname=name, recursive=False)
        length = tar.offset
    return lzma.compress(raw.getvalue()[:length], preset=9)
