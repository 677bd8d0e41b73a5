"""Answers on disk, addressed by what was asked: makes runs cheap, and repeatable without a server.

An entry's key is a hash of the corpus fingerprint, k and the query as it was sent, so that an answer of another corpus,
back end or setting is never taken for this one's. One SQLite file; several processes may share it.
"""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import orjson

from search_agent.retrieval.client.reply import Terms
from search_agent.retrieval.types import Document
from verl.errors import UserError

BUSY_TIMEOUT_S = 30.0
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS answers "
    "(key BLOB PRIMARY KEY, fingerprint TEXT, k INTEGER, query TEXT, documents BLOB) WITHOUT ROWID"
)


class AnswerStore:
    """Reads at once (readers never wait for writers); writes in a thread of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="answers")
        try:
            self._connection = self._connect()
        except sqlite3.DatabaseError as error:
            raise UserError(f"cache_file: {path}: {error}; give a file that a cache wrote, or a new one") from error

    def get(self, fingerprint: str, terms: Terms, query: str) -> tuple[Document, ...] | None:
        """The stored answer, None if there is none."""
        key = _key(fingerprint, terms, query)
        row = self._connection.execute("SELECT documents FROM answers WHERE key = ?", (key,)).fetchone()
        return None if row is None else tuple(Document(*fields) for fields in orjson.loads(row[0]))

    async def put(self, fingerprint: str, terms: Terms, answers: Sequence[tuple[str, tuple[Document, ...]]]) -> None:
        """Store answers, replacing older ones, in one transaction."""
        key = partial(_key, fingerprint, terms)
        rows = [(key(query), fingerprint, terms.k, query, _packed(docs)) for query, docs in answers]
        await asyncio.get_running_loop().run_in_executor(self._writer, self._write, rows)

    def only_fingerprint(self) -> str:
        """The fingerprint of a recording. Raises UserError unless the file holds answers of exactly one corpus."""
        found = [row[0] for row in self._connection.execute("SELECT DISTINCT fingerprint FROM answers LIMIT 3")]
        if len(found) != 1:
            fault = "no recorded answers" if not found else "answers of more than one corpus or back end"
            raise UserError(f"cache_file: {self._path} holds {fault}; record the run first, into a file of its own")
        return str(found[0])

    def close(self) -> None:
        """Finish writing and close the file."""
        self._writer.shutdown(wait=True)
        self._connection.close()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=BUSY_TIMEOUT_S, check_same_thread=False)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(_SCHEMA)
        connection.commit()
        return connection

    def _write(self, rows: Sequence[tuple[bytes, str, int, str, bytes]]) -> None:
        connection = sqlite3.connect(self._path, timeout=BUSY_TIMEOUT_S)
        with connection:
            connection.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?)", rows)
        connection.close()


def _key(fingerprint: str, terms: Terms, query: str) -> bytes:
    further = [terms.options, terms.ids_only] if terms.options or terms.ids_only else []
    return hashlib.sha256(orjson.dumps([fingerprint, terms.k, query, *further])).digest()


def _packed(documents: tuple[Document, ...]) -> bytes:
    return orjson.dumps([[doc.id, doc.title, doc.text, doc.score] for doc in documents])
