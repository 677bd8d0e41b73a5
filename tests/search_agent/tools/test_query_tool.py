"""What the tools query and sql do with a request, over fakes and a real database."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from search_agent.retrieval.types import Document, SearchResult
from search_agent.tools import query, sql
from search_agent.tools.base import BadRequest, Caller
from verl.data.tasks import Task
from verl.errors import UserError


class Shelf:
    """Remembers what it was asked, and has passages."""

    def __init__(self, texts: Sequence[str] = ()) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.texts = texts

    async def search(self, query: str, k: int, *, options: Any = None, ids_only: bool = False) -> SearchResult:
        self.asked.append((query, k, dict(options or {}), ids_only))
        found = [Document(f"d{n}", "Oslo tower", text, 1.0) for n, text in enumerate(self.texts[:k])]
        return SearchResult(tuple(found), 0.0, False)


TASK = Task("t", "who built it", ("mara",), {"day": "2015/06/30"})


async def run(shelf: Shelf, task: Task = TASK, **config: Any) -> SearchResult:
    tool = query.build(query.Config(**config), retriever=shelf, top_k=3)
    return await tool.call("tower builder", Caller(task))


async def test_ids_alone_are_asked_for_with_the_last_day_where_the_task_has_one() -> None:
    shelf = Shelf()
    await run(shelf)
    await run(shelf, latest_date="day", k=50)
    assert shelf.asked == [
        ("tower builder", 3000, {}, True),
        ("tower builder", 50, {"date.to": "2015/06/30"}, True),
    ]
    with pytest.raises(UserError, match="no year"):
        await run(shelf, latest_date="year")


@pytest.mark.parametrize(
    ("mode", "text"),
    [
        ("query", "tower builder"),
        ("original_and_query", "who built it tower builder"),
        ("pseudo_document", "who built it tower builder"),
    ],
)
async def test_what_is_executed_is_a_choice(mode: Any, text: str) -> None:
    shelf = Shelf()
    await run(shelf, executed_text=mode)
    assert shelf.asked[0][0] == text


def test_a_long_pseudo_document_is_balanced_by_its_question() -> None:
    assert query.executed("pseudo_document", "q", "w " * 250).split().count("q") == 2


async def test_an_answer_is_looked_for_as_deep_as_it_must() -> None:
    texts = ["no"] * 150 + ["by Mara", "no"]
    shelf = Shelf(texts)
    assert (await run(shelf, answer_in="text")).facts == {"answer_rank": 151}
    assert [k for _, k, *_ in shelf.asked] == [100, 1000]
    assert not shelf.asked[0][3], "texts are needed"
    assert (await run(Shelf(["no"] * 20), answer_in="text")).facts == {"answer_rank": 0}
    assert (await run(Shelf(["no"] * 20), answer_in="text", k=10)).facts == {"answer_rank": 0}


async def test_a_title_counts_as_evidence_only_where_it_is_asked_to() -> None:
    task = Task("t", "q", ("oslo",))
    assert (await run(Shelf(["x"]), task, answer_in="text")).facts == {"answer_rank": 0}
    assert (await run(Shelf(["x"]), task, answer_in="contents")).facts == {"answer_rank": 1}


@pytest.fixture
def library(tmp_path: Path) -> Path:
    connection = sqlite3.connect(tmp_path / "books.sqlite")
    connection.executescript("CREATE TABLE b (t TEXT); INSERT INTO b VALUES ('x'), ('x'), ('y');")
    connection.close()
    return tmp_path


async def ask(library: Path, statement: str, **config: Any) -> SearchResult:
    tool = sql.build(sql.Config(databases=library, processes=1, **config), retriever=Shelf(), top_k=1)
    task = Task("t", "which", ("?",), {"db_path": "books.sqlite", "sql": "SELECT t FROM b"})
    await tool.open()
    try:
        return await tool.call(statement, Caller(task))
    finally:
        await tool.close()


async def test_sql_is_right_if_it_returns_the_rows_of_the_tasks_own(library: Path) -> None:
    assert (await ask(library, "SELECT t FROM b ORDER BY t DESC")).facts == {"correct": 1, "rows": 3}
    assert (await ask(library, "SELECT DISTINCT t FROM b")).facts == {"correct": 0, "rows": 2}
    assert (await ask(library, "SELECT DISTINCT t FROM b", multiset=False)).facts == {"correct": 1, "rows": 2}


async def test_sql_that_fails_is_the_policys_fault(library: Path) -> None:
    with pytest.raises(BadRequest, match="sql: no such table: nowhere"):
        await ask(library, "SELECT * FROM nowhere")
    with pytest.raises(BadRequest, match="not authorized"):
        await ask(library, "DROP TABLE b")


async def test_a_task_without_a_database_is_named(library: Path) -> None:
    tool = sql.build(sql.Config(processes=1), retriever=Shelf(), top_k=1)
    with pytest.raises(UserError, match="task t: its metadata has no db_path"):
        await tool.call("SELECT 1", Caller(Task("t", "q", ("a",))))
