"""Ordered admission: what the engine is given depends on the requests alone, never on who was faster."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from verl.errors import InfrastructureError
from verl.rollout.admission import OrderedAdmission
from verl.rollout.engine_vllm import GenerateRequest
from verl.rollout.interfaces import Generation, Sampling, Turn

TURN, SAMPLING = Turn(8), Sampling()


class RecordingEngine:
    """Answers at once and remembers the batches that it was given."""

    def __init__(self, fail: bool = False) -> None:
        self.batches: list[list[int]] = []
        self._fail = fail

    async def generate(self, token_ids: Sequence[int], turn: Turn, sampling: Sampling, seed: int) -> Generation:
        raise AssertionError("single requests would be admitted in order of arrival")

    def generate_many(self, requests: Sequence[GenerateRequest]) -> list[asyncio.Future[Generation]]:
        self.batches.append([request.seed for request in requests])
        futures = [asyncio.get_running_loop().create_future() for _ in requests]
        for future in futures:
            if self._fail:
                future.set_exception(InfrastructureError("engine died"))
            else:
                future.set_result(Generation([1], "x", [0.0], [0], "stop"))
        return futures


async def play(shuffle_seed: int, turns: dict[tuple[str, int], int]) -> list[list[int]]:
    """Episodes of different lengths, with random pauses where a search would be; the seed of a request names it."""
    engine, rng = RecordingEngine(), random.Random(shuffle_seed)
    admission = OrderedAdmission(engine, len(turns))

    async def episode(key: tuple[str, int], number: int) -> None:
        try:
            mine = admission.episode(*key)
            for turn in range(turns[key]):
                await asyncio.sleep(rng.random() * 0.003)
                await mine.generate([1], TURN, SAMPLING, seed=100 * number + turn)
        finally:
            admission.end_episode()

    order = list(enumerate(turns))
    rng.shuffle(order)
    await asyncio.gather(*(episode(key, number) for number, key in order))
    return engine.batches


async def test_batches_are_the_same_whatever_was_fast_or_slow() -> None:
    turns = {("a", 0): 1, ("a", 1): 3, ("b", 0): 2, ("c", 0): 4}
    expected = [[0, 100, 200, 300], [101, 201, 301], [102, 302], [303]]
    for shuffle_seed in range(5):
        assert await play(shuffle_seed, turns) == expected


async def test_a_failing_engine_fails_every_waiting_episode() -> None:
    admission = OrderedAdmission(RecordingEngine(fail=True), 2)
    calls = [admission.episode("t", n).generate([1], TURN, SAMPLING, seed=n) for n in range(2)]
    answers = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 5)
    assert all(isinstance(answer, InfrastructureError) for answer in answers)


async def test_an_episode_that_ends_early_frees_the_others() -> None:
    engine = RecordingEngine()
    admission = OrderedAdmission(engine, 2)
    waiting = asyncio.create_task(admission.episode("a", 0).generate([1], TURN, SAMPLING, seed=1))
    await asyncio.sleep(0)
    assert engine.batches == []
    admission.end_episode()
    await asyncio.wait_for(waiting, 5)
    assert engine.batches == [[1]]
