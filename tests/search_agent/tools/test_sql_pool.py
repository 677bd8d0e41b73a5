"""Foreign SQL: what it may read, and that it can do nothing else."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from search_agent.tools.sql_pool import SqlConfig, SqlFailure, SqlPool, SqlRows, same_rows
from verl.errors import InfrastructureError, UserError


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sql") / "library it's?.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript(
        "CREATE TABLE books (id INTEGER PRIMARY KEY, title TEXT, year INTEGER);"
        "INSERT INTO books VALUES (1, 'Crimson Harbor', 1902), (2, 'Ümlaut', 1911), (3, NULL, 1911);"
        "CREATE TABLE raw (data BLOB); INSERT INTO raw VALUES (x'00ff');"
    )
    connection.close()
    return path


@pytest.fixture
async def pool() -> AsyncIterator[SqlPool]:
    async with SqlPool(SqlConfig(processes=1, deadline_s=0.5, memory_mib=256, max_rows=100)) as pool:
        yield pool


async def test_a_statement_returns_its_rows_with_their_types(pool: SqlPool, database: Path) -> None:
    result = await pool.run(database, "SELECT title, year * 1.5 FROM books ORDER BY id")
    assert result == SqlRows((("Crimson Harbor", 2853.0), ("Ümlaut", 2866.5), (None, 2866.5)), cut=False)
    assert await pool.run(database, "SELECT data FROM raw") == SqlRows(((b"\x00\xff",),), cut=False)


def state(database: Path) -> tuple[bytes, list[Path]]:
    """What the file holds, and what stands beside it."""
    return hashlib.sha256(database.read_bytes()).digest(), sorted(database.parent.iterdir())


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE books",
        "INSERT INTO books VALUES (9, 'x', 1)",
        "DELETE FROM books",
        "PRAGMA journal_mode=DELETE",
        "ATTACH DATABASE '/tmp/stolen.sqlite' AS other",
        "VACUUM INTO '/tmp/copy.sqlite'",
        "CREATE TEMP TABLE t AS SELECT 1",
        "SELECT load_extension('/tmp/evil.so')",
        "SELECT 1; DROP TABLE books",
        "BEGIN EXCLUSIVE",
        "",
        "-- nothing",
        "SELECT \x00",
        "SELECT * FROM nowhere",
    ],
)
async def test_what_is_not_one_read_is_the_statements_own_fault_and_changes_nothing(
    pool: SqlPool, database: Path, statement: str
) -> None:
    before = state(database)
    result = await pool.run(database, statement)
    assert isinstance(result, SqlFailure)
    assert result.kind == "sql"
    assert state(database) == before


@pytest.mark.parametrize(
    ("statement", "kinds"),
    [
        ("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n", {"time"}),
        ("SELECT count(*) FROM books a, books b, " + ", ".join(f"books c{i}" for i in range(30)), {"time"}),
        ("SELECT zeroblob(1000000000)", {"size", "memory"}),
        ("SELECT printf('%.*c', 900000000, 'x')", {"size", "memory", "sql", "time"}),
        ("SELECT group_concat(hex(randomblob(1000000))) FROM books a, books b, books c", {"size", "memory"}),
        ("SELECT '" + "x" * 70_000 + "'", {"size"}),
        ("SELECT " + "(" * 1000 + "1" + ")" * 1000, {"sql"}),
    ],
)
async def test_what_would_take_all_time_or_memory_fails_by_its_own_bound(
    pool: SqlPool, database: Path, statement: str, kinds: set[str]
) -> None:
    result = await pool.run(database, statement)
    assert isinstance(result, SqlFailure)
    assert result.kind in kinds
    assert isinstance(await pool.run(database, "SELECT 1"), SqlRows), "the pool serves the next statement"


async def test_rows_beyond_the_bound_are_cut_and_said_to_be(pool: SqlPool, database: Path) -> None:
    many = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 1000) SELECT i FROM n"
    result = await pool.run(database, many)
    assert isinstance(result, SqlRows)
    assert result.cut
    assert len(result.rows) == 100
    assert not same_rows(result, result)


async def test_a_database_that_cannot_be_read_is_nobodys_statement(pool: SqlPool, tmp_path: Path) -> None:
    with pytest.raises(InfrastructureError, match="no such file"):
        await pool.run(tmp_path / "missing.sqlite", "SELECT 1")
    (tmp_path / "text.sqlite").write_text("no database " * 100)
    with pytest.raises(InfrastructureError, match="not a database"):
        await pool.run(tmp_path / "text.sqlite", "SELECT 1")
    assert not (tmp_path / "missing.sqlite").exists()


async def test_no_process_is_left_behind(database: Path) -> None:
    async with SqlPool(SqlConfig(processes=2)) as pool:
        await pool.run(database, "SELECT 1")
        processes = [guarded._process for guarded in pool._all if guarded._process]
    assert processes
    assert all(process.returncode is not None for process in processes)


async def test_statements_of_any_text_end_as_rows_or_as_a_failure(pool: SqlPool, database: Path) -> None:
    words = st.sampled_from(
        ["SELECT", "FROM", "books", "title", "*", "(", ")", "'", ";", "UNION", "DROP TABLE", "1", ","]
    )

    async def holds(statement: str) -> None:
        assert isinstance(await pool.run(database, statement), SqlRows | SqlFailure)

    statements: list[str] = []

    @settings(max_examples=150, suppress_health_check=list(HealthCheck), database=None)
    @given(st.one_of(st.text(), st.lists(words, max_size=12).map(" ".join), st.just("\ud800")))
    def draw(statement: str) -> None:
        statements.append(statement)

    draw()
    for statement in statements:
        await holds(statement)


def rows_of(rows: list[tuple[object, ...]]) -> SqlRows:
    return SqlRows(tuple(rows), cut=False)


def test_rows_are_compared_as_a_multiset_or_as_published_as_a_set() -> None:
    one, twice = rows_of([(1, "a")]), rows_of([(1, "a"), (1, "a")])
    assert not same_rows(one, twice)
    assert same_rows(one, twice, multiset=False)
    assert same_rows(rows_of([(1,), (2,)]), rows_of([(2,), (1,)]))
    assert not same_rows(rows_of([(1, 2)]), rows_of([(2, 1)]))
    assert same_rows(rows_of([(1,)]), rows_of([(1.0,)]))


def test_impossible_bounds_are_refused() -> None:
    with pytest.raises(UserError, match="deadline_s=0"):
        SqlConfig(deadline_s=0)
    with pytest.raises(UserError, match="processes=0"):
        SqlConfig(processes=0)
