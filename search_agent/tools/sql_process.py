"""One process that runs foreign SQL on SQLite files, read only, within bounds of time, memory, rows and bytes.

Run by itself (``python -I sql_process.py SECONDS MEMORY_MIB``), standard library only. It says ``ready``, then reads
one JSON object a line, ``{"path", "sql", "rows", "bytes"}``, and answers each with one: ``{"rows": [[...]], "cut":
bool}``, or ``{"error": kind, "message": text}`` with a kind of ``sql`` (the statement's own fault), ``time``,
``memory``, ``size`` or ``database`` (the file cannot be read: nobody's statement is at fault).

Why a statement can do no harm: the file is opened read only; an authorizer allows reading and calculating and denies
the rest (ATTACH, PRAGMA, writing, loading extensions) before anything runs; SQLite's own limits bound strings,
depth and compound selects; a progress handler ends what runs too long, and whoever started this process kills it where
that does not help; memory has a hard limit of the operating system.
"""

from __future__ import annotations

import json
import resource
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
FORBIDDEN_FUNCTIONS = {"load_extension", "fts3_tokenizer", "readfile", "writefile", "edit", "sqlite_compileoption_get"}
LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: 16 * 2**20,
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 256 * 2**10,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 200,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 64,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 1000,
    sqlite3.SQLITE_LIMIT_FUNCTION_ARG: 32,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
}
READY = "ready"
"""The first line: it has started."""
_LOOK_EVERY = 20_000
"""Instructions of SQLite's machine between two looks at the clock: well under a millisecond."""


class Deadline:
    """Says to the progress handler when a statement has had its time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.at = 0.0

    def begin(self) -> None:
        """A statement starts now."""
        self.at = time.monotonic() + self.seconds

    def passed(self) -> bool:
        """Whether the statement's time is over."""
        return time.monotonic() > self.at


def authorize(action: int, first: str | None, second: str | None, *_: object) -> int:
    """SQLite's authorizer: an allow-list, so that what a later version adds is denied."""
    if action not in ALLOWED:
        return sqlite3.SQLITE_DENY
    if action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in FORBIDDEN_FUNCTIONS:
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK


def connect(path: str, deadline: Deadline, memory_bytes: int) -> sqlite3.Connection:
    """Open a database that foreign statements may run on. Raises sqlite3.Error if the file is none."""
    if not Path(path).is_file():
        raise sqlite3.OperationalError(f"{path}: no such file")
    connection = sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True)
    connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
    connection.execute(f"PRAGMA hard_heap_limit={memory_bytes // 2}")
    connection.execute("PRAGMA trusted_schema=OFF")
    connection.execute("PRAGMA temp_store=MEMORY")  # files cannot be written
    connection.execute("PRAGMA cell_size_check=ON")
    connection.execute("SELECT count(*) FROM sqlite_master")  # a file that is no database says so now
    for limit, value in LIMITS.items():
        connection.setlimit(limit, value)
    connection.set_authorizer(authorize)
    connection.set_progress_handler(deadline.passed, _LOOK_EVERY)
    return connection


def run(connection: sqlite3.Connection, deadline: Deadline, sql: str, max_rows: int, max_bytes: int) -> dict[str, Any]:
    """Execute one statement and return its rows, as the module says."""
    deadline.begin()
    rows: list[list[Any]] = []
    size, cut = 0, False
    cursor = connection.cursor()
    try:
        for row in cursor.execute(sql):
            if len(rows) == max_rows:
                cut = True
                break
            values = [{"blob": value.hex()} if isinstance(value, bytes) else value for value in row]
            size += sum(len(value) if isinstance(value, str) else 16 for value in values)
            if size > max_bytes:
                return failure("size", f"the result is larger than {max_bytes} bytes")
            rows.append(values)
        if cursor.description is None:
            return failure("sql", "the statement returns nothing: write one SELECT")
    except MemoryError:
        return failure("memory", "the statement needs too much memory")
    except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError, RecursionError) as error:
        if str(error) == "interrupted":  # by the progress handler
            return failure("time", f"no result after {deadline.seconds:g} s")
        return failure("size" if "too big" in str(error) else "sql", str(error))
    finally:
        cursor.close()
    return {"rows": rows, "cut": cut}


def failure(kind: str, message: str) -> dict[str, Any]:
    """An answer that is no result."""
    return {"error": kind, "message": message[:500]}


def main(seconds: float, memory_mib: int) -> None:
    """Answer every line until there are no more."""
    memory_bytes = memory_mib * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # sorting larger than memory fails rather than fills a disk
    deadline = Deadline(seconds)
    print(READY, flush=True)  # from here on it is the statement that takes time
    opened: tuple[str, sqlite3.Connection] | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if opened is None or opened[0] != request["path"]:
                if opened is not None:
                    opened[1].close()
                opened = None
                opened = request["path"], connect(request["path"], deadline, memory_bytes)
        except (sqlite3.Error, OSError) as error:
            answer = failure("database", str(error))
        else:
            answer = run(opened[1], deadline, request["sql"], request["rows"], request["bytes"])
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
