"""What arrives while the engine is busy is its next batch; failures stay with those who caused them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence

import pytest

from search_agent.retrieval.backends.backend import Hit
from search_agent.retrieval.coalescer import Failed
from search_agent.retrieval.server.batcher import Batcher, QueueFull


class Engine:
    """Answers with the length of the query; waits at a gate; fails on ``bad``."""

    max_batch = 8

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.called = threading.Event()
        self.gate = threading.Event()

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        self.calls.append(list(queries))
        self.called.set()
        assert self.gate.wait(10)
        if "bad" in queries:
            raise RuntimeError("cannot read this")
        return [[Hit(len(query), float(k))] for query in queries]

    def manifest(self) -> dict[str, object]:
        return {}

    def implementation(self) -> str:
        return "fake"


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine()
    yield engine
    engine.gate.set()


async def start_one(batcher: Batcher, engine: Engine) -> list[asyncio.Future[list[Hit]]]:
    futures = batcher.submit(["first"], 1)
    assert await asyncio.to_thread(engine.called.wait, 10)
    return futures


async def test_queries_that_arrive_while_it_is_busy_are_one_batch(engine: Engine) -> None:
    batcher = Batcher(engine, threads=1, max_waiting=100)
    futures = await start_one(batcher, engine)
    for query in "abc":
        futures += batcher.submit([query], 1)
    engine.gate.set()
    await asyncio.gather(*futures)
    assert engine.calls == [["first"], ["a", "b", "c"]]


async def test_identical_queries_in_flight_are_computed_once(engine: Engine) -> None:
    batcher = Batcher(engine, threads=1, max_waiting=100)
    futures = await start_one(batcher, engine)
    futures += batcher.submit(["first", "same", "same"], 1) + batcher.submit(["same"], 2)
    engine.gate.set()
    assert await asyncio.gather(*futures) == [[Hit(5, 1.0)]] * 2 + [[Hit(4, 1.0)]] * 2 + [[Hit(4, 2.0)]]
    assert engine.calls == [["first"], ["same"], ["same"]]
    assert batcher.computed == 3


async def test_one_bad_query_does_not_fail_its_batch(engine: Engine) -> None:
    batcher = Batcher(engine, threads=1, max_waiting=100)
    engine.gate.set()
    outcomes = await asyncio.gather(*batcher.submit(["x", "bad", "yy"], 1), return_exceptions=True)
    assert outcomes[0] == [Hit(1, 1.0)]
    assert isinstance(outcomes[1], Failed)
    assert isinstance(outcomes[1].error, RuntimeError)
    assert outcomes[2] == [Hit(2, 1.0)]


async def test_a_full_queue_takes_nothing_of_a_request(engine: Engine) -> None:
    batcher = Batcher(engine, threads=1, max_waiting=3)
    await start_one(batcher, engine)
    batcher.submit(["a", "b"], 1)
    with pytest.raises(QueueFull):
        batcher.submit(["c", "d"], 1)
    assert batcher.waiting == 2
    assert len(batcher.submit(["a", "b", "c"], 1)) == 3


async def test_a_client_that_leaves_takes_no_answer_from_others(engine: Engine) -> None:
    batcher = Batcher(engine, threads=1, max_waiting=100)
    await start_one(batcher, engine)
    shared = batcher.submit(["a"], 1)[0]
    leaver = asyncio.ensure_future(asyncio.wait_for(asyncio.shield(shared), 0.01))
    with pytest.raises(TimeoutError):
        await leaver
    engine.gate.set()
    assert await batcher.submit(["a"], 1)[0] == [Hit(1, 1.0)]
