"""Foreign SQL: 10,000 hostile statements change nothing and leave nothing, and 512 rewards use all cores.

Statements are drawn from a seed: writes, pragmas, attachments, endless recursion, huge results, torn syntax, noise.
``--quick`` runs 500 of them, and 64 rewards.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from bench.harness import Figure, main
from search_agent.tools.sql_pool import SqlConfig, SqlFailure, SqlPool

HOSTILE = (
    "DROP TABLE people",
    "DELETE FROM people WHERE 1",
    "INSERT INTO people VALUES ('x', 'y')",
    "UPDATE people SET city = ''",
    "PRAGMA writable_schema=ON",
    "PRAGMA journal_mode=WAL",
    "ATTACH '/tmp/sleuth_stolen.sqlite' AS s",
    "VACUUM INTO '/tmp/sleuth_stolen.sqlite'",
    "CREATE TABLE t AS SELECT * FROM people",
    "SELECT load_extension('/tmp/evil')",
    "SELECT 1; DROP TABLE people",
    "BEGIN EXCLUSIVE; DROP TABLE people; COMMIT",
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT sum(i) FROM n",
    "SELECT count(*) FROM people a, people b, people c, people d",
    "SELECT hex(zeroblob(900000000))",
    "SELECT group_concat(hex(randomblob(500000))) FROM people",
    "SELECT printf('%.*c', 100000000, 'x')",
    "WITH RECURSIVE r(x) AS (SELECT randomblob(1000) UNION ALL SELECT randomblob(1000) FROM r) SELECT * FROM r",
    "SELECT * FROM people ORDER BY randomblob(100000)",
    "SELECT " + "abs(" * 150 + "1" + ")" * 150,
)
WORDS = (
    "SELECT",
    "FROM",
    "people",
    "*",
    "(",
    ")",
    "'",
    '"',
    ";",
    "--",
    "UNION ALL",
    "name",
    "1",
    ",",
    "\x00",
    "é",
    "=",
)
GOOD = "SELECT city, count(*) FROM people GROUP BY city ORDER BY 2 DESC"
DEADLINE_S = 0.2


def figures(quick: bool) -> Iterator[Figure]:
    """Everything on one small database."""
    with tempfile.TemporaryDirectory() as folder:
        path = library(Path(folder))
        before = state(path)
        statements = draw(500 if quick else 10_000, random.Random(0))
        kinds, slowest = asyncio.run(run(path, statements, DEADLINE_S, None))
        print(dict(kinds))
        yield Figure("hostile statements", len(statements), "statements")
        yield Figure.at_most("files changed or new beside the database", float(before != state(path)), "", 0)
        left = [child for child in psutil.Process().children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE]
        yield Figure.at_most("processes left behind", len(left), "processes", 0)
        yield Figure.at_most("slowest statement beyond its deadline", slowest - DEADLINE_S, "s", 1.5)
        rewards = [GOOD] * (64 if quick else 512)
        seconds = [asyncio.run(timed(path, rewards, processes)) for processes in (1, os.cpu_count() or 1)]
        yield Figure("rewards per second, all cores", len(rewards) / seconds[1], "1/s")
        yield Figure("all cores / one", seconds[0] / seconds[1], "x")


def library(folder: Path) -> Path:
    """20,000 people in 300 cities."""
    path = folder / "library.sqlite"
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("CREATE TABLE people (name TEXT, city TEXT)")
        rows = ((f"person {n}", f"city {n % 300}") for n in range(20_000))
        connection.executemany("INSERT INTO people VALUES (?, ?)", rows)
    connection.close()
    return path


def state(path: Path) -> tuple[str, list[Path], bool]:
    """What the file holds, what stands beside it, and whether a copy was made elsewhere."""
    stolen = Path("/tmp/sleuth_stolen.sqlite").exists()
    return hashlib.sha256(path.read_bytes()).hexdigest(), sorted(path.parent.iterdir()), stolen


def draw(count: int, rng: random.Random) -> list[str]:
    """Half of them known attacks, half noise."""
    noise = [" ".join(rng.choices(WORDS, k=rng.randint(1, 15))) for _ in range(count // 2)]
    statements = [*rng.choices(HOSTILE, k=count - len(noise)), *noise]
    rng.shuffle(statements)
    return statements


async def run(
    path: Path, statements: Sequence[str], deadline_s: float, processes: int | None
) -> tuple[Counter[str], float]:
    """How statements ended, and the longest that one took from its turn to its end."""
    kinds: Counter[str] = Counter()
    slowest = 0.0
    gate = asyncio.Semaphore(processes or os.cpu_count() or 1)
    async with SqlPool(SqlConfig(processes=processes, deadline_s=deadline_s, memory_mib=256)) as pool:
        await asyncio.gather(*(pool.run(path, "SELECT 1") for _ in range(8)))  # processes are up

        async def one(statement: str) -> None:
            nonlocal slowest
            async with gate:
                began = time.perf_counter()
                result = await pool.run(path, statement)
                slowest = max(slowest, time.perf_counter() - began)
            kinds[result.kind if isinstance(result, SqlFailure) else "rows"] += 1

        await asyncio.gather(*(one(statement) for statement in statements))
    return kinds, slowest


async def timed(path: Path, statements: Sequence[str], processes: int) -> float:
    """Seconds for all."""
    async with SqlPool(SqlConfig(processes=processes, deadline_s=5)) as pool:
        await asyncio.gather(*(pool.run(path, "SELECT 1") for _ in range(processes * 2)))
        began = time.perf_counter()
        await asyncio.gather(*(pool.run(path, statement) for statement in statements))
        return time.perf_counter() - began


if __name__ == "__main__":
    main(figures)
