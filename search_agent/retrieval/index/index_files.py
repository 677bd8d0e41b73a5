"""The files of an index folder. Arrays and vocabulary have the names and the layout of a saved ``bm25s`` index.

The manifest is written last: a folder without one is unfinished.
"""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import orjson

from search_agent.retrieval.index.postings import Postings, term_maxima
from verl.durable import write_atomically
from verl.errors import UserError

FORMAT = 1
MANIFEST = "manifest.json"
VOCABULARY = "vocab.index.json"
PARAMETERS = "params.index.json"
STARTS = "indptr.csc.index.npy"
DOCS = "indices.csc.index.npy"
SCORES = "data.csc.index.npy"
MAXIMA = "maxima.npy"
WORD_FILES = (VOCABULARY, PARAMETERS, STARTS, DOCS, SCORES, MAXIMA)
WORK = "work"
"""Folder of an unfinished build."""
HASH_BLOCK_BYTES = 1 << 20
SAMPLE_BLOCKS, SAMPLE_BLOCK_BYTES = 256, 1 << 14


@contextmanager
def exclusive(
    folder: Path, key: str = "index=", remedy: str = "give index=FOLDER that can be written"
) -> Iterator[None]:
    """Let one process at a time write into ``folder``; the others wait, and then find it finished.

    Raises UserError, with the key that names the folder and what to do, if nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder.with_name(folder.name + ".lock").open("w")
    except OSError as error:
        raise UserError(f"{key}{folder}: {error.strerror}; {remedy}") from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def sha256_of(path: Path) -> str:
    """Hash of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def sample_of(path: Path) -> str:
    """Hash of a large file's size and of blocks from all over it: quick, and another for other vectors."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for number in range(SAMPLE_BLOCKS):
            file.seek(max(0, size - SAMPLE_BLOCK_BYTES) * number // (SAMPLE_BLOCKS - 1))
            digest.update(file.read(SAMPLE_BLOCK_BYTES))
    return digest.hexdigest()


def source_of(corpus: Path) -> dict[str, Any]:
    """What tells whether a corpus file has changed: name, size, time of change."""
    try:
        status = corpus.stat()
    except OSError as error:
        raise UserError(f"corpus={corpus}: {error.strerror}; give a file of passages") from error
    return {"name": corpus.name, "bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


class ArrayWriter:
    """Writes a one-dimensional ``.npy`` file of known length piece by piece."""

    def __init__(self, path: Path, dtype: str, length: int) -> None:
        self._file: BinaryIO = path.open("wb")
        self._dtype = np.dtype(dtype)
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": (length,)}
        np.lib.format.write_array_header_1_0(self._file, header)

    def add(self, part: npt.NDArray[Any]) -> None:
        """Append values."""
        self._file.write(np.ascontiguousarray(part, self._dtype).data)

    def close(self) -> None:
        """Finish the file."""
        self._file.close()


def write_vocabulary(folder: Path, terms: Iterable[str], parameters: dict[str, Any]) -> None:
    """Write term numbers (in order) and the settings that ``bm25s`` reads."""
    (folder / VOCABULARY).write_bytes(orjson.dumps({term: number for number, term in enumerate(terms)}))
    (folder / PARAMETERS).write_bytes(orjson.dumps(parameters))


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a finished index, None if there is none. Raises UserError if it is of another format."""
    if not (folder / MANIFEST).exists():
        return None
    manifest = _read_object(folder)
    if manifest.get("format") != FORMAT:
        raise UserError(f"index={folder}: format {manifest.get('format')}, this version reads {FORMAT}; build it again")
    return manifest


def _read_object(folder: Path) -> dict[str, Any]:
    try:
        manifest = orjson.loads((folder / MANIFEST).read_bytes())
    except orjson.JSONDecodeError as error:
        raise UserError(f"{folder / MANIFEST}: not a manifest ({error}); remove {folder} to make it again") from error
    return manifest if isinstance(manifest, dict) else {}


def claim(home: Path, made: dict[str, Any], dtype: str) -> str:
    """Note in ``home`` how its vectors are made, and return the type that the encoder which began them computed in.

    Raises UserError if those there were made in another way.
    """
    if not (home / MANIFEST).exists():
        write_atomically(home / MANIFEST, orjson.dumps({**made, "dtype": dtype}, option=orjson.OPT_INDENT_2))
    found = _read_object(home)
    differing = sorted(key for key in made if found.get(key) != made[key])
    if differing:
        raise UserError(
            f"{home}: its vectors were made with another {', '.join(differing)}; remove it to make new ones"
        )
    return str(found.get("dtype", "float32"))


def check_source(folder: Path, manifest: dict[str, Any], corpus: Path) -> None:
    """Raise UserError unless the index was built from this very file."""
    built, found = manifest["source"], source_of(corpus)
    if built["bytes"] == found["bytes"] and built["mtime_ns"] == found["mtime_ns"]:
        return
    if built["bytes"] != found["bytes"] or built["sha256"] != sha256_of(corpus):
        raise UserError(
            f"index={folder} was built from another corpus than {corpus} ({built['name']}, {built['bytes']} bytes); "
            "remove it, or give index=ANOTHER"
        )


def open_postings(folder: Path, num_docs: int) -> Postings:
    """Map the arrays of a finished index; only the vocabulary is read into memory."""
    vocabulary = orjson.loads((folder / VOCABULARY).read_bytes())
    starts, docs, scores, maxima = (_mapped(folder / name) for name in (STARTS, DOCS, SCORES, MAXIMA))
    return Postings(vocabulary, starts, docs, scores, maxima, num_docs)


def is_bm25s(folder: Path) -> bool:
    """Whether ``bm25s`` saved this folder, as FlashRAG's index builder does."""
    return (folder / PARAMETERS).exists() and not (folder / MANIFEST).exists() and not (folder / WORK).exists()


def open_bm25s(folder: Path, num_docs: int) -> Postings:
    """Map what ``bm25s`` saved; its terms must be lower-case Snowball English stems, as they are in FlashRAG.

    Raises UserError if it is an index of other passages, or of a kind of BM25 that scores absent terms.
    """
    parameters = orjson.loads((folder / PARAMETERS).read_bytes())
    held = parameters.get("num_docs")
    if held != num_docs:
        raise UserError(f"index={folder} holds {held} passages, the corpus {num_docs}; give the corpus it was made of")
    if parameters["method"] in ("bm25l", "bm25+"):
        raise UserError(f"index={folder}: method {parameters['method']} is not served; build with method lucene")
    starts, docs = _mapped(folder / STARTS).astype(np.int64), _mapped(folder / DOCS).astype(np.int32, copy=False)
    scores = _mapped(folder / SCORES).astype(np.float32, copy=False)
    if not (scores > 0).all():
        method = parameters["method"]
        raise UserError(f"index={folder}: method {method} scores some terms 0 or less; build with method lucene")
    ascending = np.diff(docs) > 0
    inner = starts[1:-1]
    ascending[inner[(inner > 0) & (inner < len(docs))] - 1] = True
    if not ascending.all():
        raise UserError(f"index={folder}: its postings are not in the order of the corpus; give index=ANOTHER")
    arrays = (starts, docs, scores, term_maxima(scores, starts))
    for array in arrays:
        array.setflags(write=False)
    vocabulary = orjson.loads((folder / VOCABULARY).read_bytes())
    return Postings(vocabulary, *arrays, num_docs, parameters["k1"], parameters["b"])


def _mapped(path: Path) -> npt.NDArray[Any]:
    return np.asarray(np.load(path, mmap_mode="r"))
