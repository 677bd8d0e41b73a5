"""The tool ``sql``: runs a query on the database of the task, beside the task's own, and says whether they agree.

A task names its database and the right query in its metadata (``db_path``, ``sql``), or as published rows do, in
``extra_info.db_path`` and as its accepted answer. What the policy wrote may be
anything: it is run by ``sql_pool``, read only and within bounds, and a query that fails is the policy's fault. The
task's own query failing is not: that is an error of the data.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from search_agent.retrieval.types import SearchResult
from search_agent.tools.base import BadRequest, Caller, Retriever, Tool
from search_agent.tools.sql_pool import SqlConfig, SqlFailure, SqlPool, SqlRows, same_rows
from verl.data.tasks import Task
from verl.errors import UserError


@dataclass(frozen=True)
class Config(SqlConfig):
    """Bounds of the queries, and how two results are compared."""

    databases: Path | None = None
    """Folder that a relative ``db_path`` of the tasks lies in; null is the folder where the run was started."""
    multiset: bool = True
    """Whether a row must occur as often as in the right result; false compares sets, as published."""


class Sql(Tool):
    """One pool of processes; the right results are remembered."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._pool = SqlPool(config)
        self._right: dict[tuple[Path, str], SqlRows] = {}

    async def open(self) -> None:
        """See ``Tool``."""
        await self._pool.__aenter__()

    async def close(self) -> None:
        """End the processes."""
        await self._pool.__aexit__()

    async def call(self, request: str, caller: Caller) -> SearchResult:
        """No documents; ``correct`` and ``rows`` as facts. Raises BadRequest where the query has no result."""
        began = time.monotonic()
        database, right = await self._right_rows(caller.task)
        given = await self._pool.run(database, request)
        if isinstance(given, SqlFailure):
            raise BadRequest(f"{given.kind}: {given.message}")
        facts = {
            "correct": float(same_rows(given, right, multiset=self._config.multiset)),
            "rows": float(len(given.rows)),
        }
        return SearchResult((), time.monotonic() - began, cached=False, facts=facts)

    async def _right_rows(self, task: Task) -> tuple[Path, SqlRows]:
        extra = task.metadata.get("extra_info")
        path = task.metadata.get("db_path") or (extra.get("db_path") if isinstance(extra, Mapping) else None)
        if not path:
            raise UserError(f"task {task.id}: its metadata has no db_path, which the tool sql needs")
        sql = str(task.metadata.get("sql") or task.golden_answers[0])
        database = (self._config.databases or Path()) / str(path)
        if (known := self._right.get((database, sql))) is None:
            rows = await self._pool.run(database, sql)
            if isinstance(rows, SqlFailure):
                raise UserError(
                    f"task {task.id}: its own SQL has no result ({rows.kind}: {rows.message}): mend or drop it"
                )
            known = self._right[database, sql] = rows
        return database, known


def build(config: Config, *, retriever: Retriever, top_k: int) -> Sql:
    """Make the tool; it asks no retriever."""
    return Sql(config)
