"""Foreign SQL on SQLite files: a pool of guarded processes, and what two results have in common.

A statement that is wrong, too slow or too large is its writer's fault and comes back as ``SqlFailure``; a database that
cannot be read, or a process that cannot be started, is an InfrastructureError. Nothing that a statement says changes a
file, outlives its deadline or is left behind: see ``sql_process``.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl.errors import InfrastructureError, above, at_least

Row = tuple[Any, ...]

_GRACE_S = 1.0
"""From the deadline that a process keeps itself to the moment when it is killed."""
_START_S = 60.0
_PROGRAM = Path(__file__).with_name("sql_process.py")


@dataclass(frozen=True)
class SqlConfig:
    """Bounds of foreign statements."""

    processes: int | None = None
    """Guarded processes, each of which runs one statement at a time; null is one a core."""
    deadline_s: float = 30.0
    """Seconds that a statement may run. 30 as DeepRetrieval."""
    memory_mib: int = 512
    """Address space of a process (MiB); a statement that needs more fails."""
    max_rows: int = 10_000
    """Rows of a result that are read; a result with more is cut, and says so."""
    max_bytes: int = 8 * 2**20
    """Bytes of a result's text; a larger result is a failure of the statement."""
    max_statement_bytes: int = 64 * 2**10
    """The longest statement (bytes of UTF-8)."""

    def __post_init__(self) -> None:
        above(self, 0, "deadline_s", "memory_mib", "max_rows", "max_bytes", "max_statement_bytes")
        at_least(self, 1, "processes")


@dataclass(frozen=True, slots=True)
class SqlRows:
    """What a statement returned."""

    rows: tuple[Row, ...]
    cut: bool
    """Whether there were more than ``max_rows``."""


@dataclass(frozen=True, slots=True)
class SqlFailure:
    """Why a statement has no result; its writer's fault."""

    kind: str
    """``sql``, ``time``, ``memory`` or ``size``."""
    message: str


def same_rows(one: SqlRows, other: SqlRows, *, multiset: bool = True) -> bool:
    """Whether two results hold the same rows in whatever order; a result that was cut is equal to none.

    ``multiset=False`` ignores how often a row occurs, as DeepRetrieval's code compares.
    """
    if one.cut or other.cut:
        return False
    if multiset:
        return Counter(one.rows) == Counter(other.rows)
    return set(one.rows) == set(other.rows)


class SqlPool:
    """Runs statements, as many at a time as there are processes; use it as an asynchronous context."""

    def __init__(self, config: SqlConfig) -> None:
        self._config = config
        self._idle: asyncio.LifoQueue[_Guarded] = asyncio.LifoQueue()
        self._all = [_Guarded(config) for _ in range(config.processes or os.cpu_count() or 1)]

    async def __aenter__(self) -> SqlPool:
        for guarded in self._all:
            self._idle.put_nowait(guarded)
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(guarded.stop() for guarded in self._all))

    async def run(self, database: Path, sql: str) -> SqlRows | SqlFailure:
        """Execute one statement on a file. Raises InfrastructureError if the file cannot be read."""
        statement = sql.encode("utf-8", "replace")
        if len(statement) > self._config.max_statement_bytes:
            return SqlFailure("size", f"the statement is longer than {self._config.max_statement_bytes} bytes")
        guarded = await self._idle.get()
        try:
            return await guarded.run(str(database), statement.decode("utf-8"))
        finally:
            self._idle.put_nowait(guarded)


class _Guarded:
    """One process, started when it is needed and again after it had to be killed."""

    def __init__(self, config: SqlConfig) -> None:
        self._config = config
        self._process: asyncio.subprocess.Process | None = None

    async def run(self, database: str, sql: str) -> SqlRows | SqlFailure:
        config = self._config
        request = {"path": database, "sql": sql, "rows": config.max_rows, "bytes": config.max_bytes}
        try:
            answer = await self._exchange(json.dumps(request).encode() + b"\n")
        except BaseException:  # a caller that is cancelled leaves an answer that nobody reads
            await self.stop()
            raise
        if isinstance(answer, SqlFailure):
            return answer
        if answer.get("error") == "database":
            raise InfrastructureError(f"SQL: {answer['message']}")
        if "error" in answer:
            return SqlFailure(answer["error"], answer["message"])
        return SqlRows(tuple(tuple(map(_value, row)) for row in answer["rows"]), answer["cut"])

    async def _exchange(self, line: bytes) -> dict[str, Any] | SqlFailure:
        process = self._process or await self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(line)
            await process.stdin.drain()
            answer = await asyncio.wait_for(process.stdout.readline(), self._config.deadline_s + _GRACE_S)
        except TimeoutError:
            await self.stop()
            return SqlFailure("time", f"no result after {self._config.deadline_s:g} s")
        except (BrokenPipeError, ConnectionResetError):
            answer = b""
        if not answer.endswith(b"\n"):  # the system ended it: the memory limit, met where Python could not say so
            await self.stop()
            return SqlFailure("memory", "the statement ended its process")
        return json.loads(answer)  # type: ignore[no-any-return]

    async def _start(self) -> asyncio.subprocess.Process:
        config = self._config
        try:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-I",
                str(_PROGRAM),
                str(config.deadline_s),
                str(config.memory_mib),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                limit=8 * config.max_bytes + 2**20,  # what JSON makes of max_bytes at most
                env={"PATH": os.defpath},
            )
            assert self._process.stdout is not None
            said = await asyncio.wait_for(self._process.stdout.readline(), _START_S)
        except OSError as error:  # a TimeoutError too
            raise InfrastructureError(f"SQL: no process could be started: {error!r}") from error
        if not said:
            raise InfrastructureError("SQL: a process ended before it was ready: raise memory_mib")
        return self._process

    async def stop(self) -> None:
        """End the process, if there is one; what it ran is given up."""
        process, self._process = self._process, None
        if process is not None:
            if process.returncode is None:
                process.kill()
            await process.wait()


def _value(value: Any) -> Any:
    return bytes.fromhex(value["blob"]) if isinstance(value, dict) else value
