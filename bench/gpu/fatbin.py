"""Device code of other cards, blanked in a CUDA library: it loads as before, and what is blank compresses to nothing.

A library holds fat binaries. Each is a header (magic, version, header size, size of all that follows) and entries: PTX
or machine code, each with the architecture it is for. Offsets and sizes stay; PTX stays too, which is small.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

_MAGIC = struct.pack("<I", 0xBA55ED50)
_HEADER = struct.Struct("<IHHQ")
"""Magic, version, size of this header, bytes of the entries."""
_ENTRY = struct.Struct("<HHIQIIHHI")
"""Kind, -, size of this header, bytes of the code, -, -, minor, major, architecture."""
_PTX, _MACHINE = 1, 2
_LEAST_ENTRY, _MOST_ENTRY = 64, 4096


def keep_only(architecture: int, library: bytes) -> bytes:
    """``library`` with all machine code blanked that is not for ``architecture`` (90 for Hopper)."""
    data = bytearray(library)
    for kind, found, start, end in entries(library):
        if kind == _MACHINE and found != architecture:
            data[start:end] = bytes(end - start)
    return bytes(data)


def entries(library: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Kind, architecture, and where the code begins and ends, of every entry of every fat binary."""
    position = 0
    while (start := library.find(_MAGIC, position)) >= 0:
        position = start + len(_MAGIC)
        if start + _HEADER.size > len(library):
            return
        _, version, header, size = _HEADER.unpack_from(library, start)
        end = start + _HEADER.size + size
        if version != 1 or header != _HEADER.size or end > len(library):
            continue  # these four bytes by chance
        yield from _within(library, start + _HEADER.size, end)
        position = end


def _within(library: bytes, place: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    while place + _LEAST_ENTRY <= end:
        kind, _, header, size, _, _, _, _, architecture = _ENTRY.unpack_from(library, place)
        code = place + header
        if kind not in (_PTX, _MACHINE) or not _LEAST_ENTRY <= header <= _MOST_ENTRY or code + size > end:
            return  # not an entry that is known: left as it is
        yield kind, architecture, code, code + size
        place = code + size
