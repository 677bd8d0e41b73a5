"""The rollout bench's arms wait for the same latencies, play the same episodes, and are judged against arm A."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Sequence
from dataclasses import replace

import aiohttp
import pytest

from bench.rollout import lockstep, proxy, whole_step, workload
from bench.rollout.arm import Played
from bench.rollout.latency import TAIL_S, latency_s
from bench.rollout.model import nearest_pair
from bench.rollout.retriever import serving
from bench.rollout.throughput import figures
from search_agent.retrieval.types import SearchResult
from verl.rollout.episode import EpisodeKey
from verl.rollout.interfaces import Generation, Observation, Prompt, Turn
from verl.trajectory import Outcome


def test_latencies_have_their_median_and_their_tail_and_depend_on_the_query_alone() -> None:
    drawn = [latency_s(f"query {number}", 0.3) for number in range(20_000)]
    assert statistics.median(drawn) == pytest.approx(0.3, rel=0.03)
    assert sum(seconds == TAIL_S for seconds in drawn) / len(drawn) == pytest.approx(0.02, abs=0.004)
    assert latency_s("query 7", 0.3) == drawn[7] != latency_s("query 7", 0.3, seed=1)


def test_the_stop_string_is_the_pair_whose_share_of_tokens_is_nearest() -> None:
    assert nearest_pair(["ab", "abc", "cab", "bc", "x "], wanted=2) == "bc"
    assert nearest_pair(["ab", "abc", "cab", "bc", "x "], wanted=3) == "ab"


class _Environment:
    """Searches once, then answers; notes when."""

    def __init__(self, search: lockstep.BatchSearch, searches: int) -> None:
        self._search, self._left = search, searches

    async def start(self) -> Prompt:
        return Prompt([1], "p")

    def next_turn(self) -> Turn | None:
        return Turn(4) if self._left >= 0 else None

    async def observe(self, generation: Generation) -> Observation | None:
        self._left -= 1
        if self._left < 0:
            return None
        await self._search.search("q", 3)
        return Observation([2], "o")

    def outcome(self) -> tuple[Outcome, str]:
        return "finished", ""


class _Search(lockstep.BatchSearch):
    def __init__(self) -> None:
        self.sizes: list[int] = []
        self._waiting = []

    async def flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        self.sizes.append(len(waiting))
        for _, _, future in waiting:
            future.set_result(SearchResult((), 0.0, False))


class _Engine:
    def __init__(self) -> None:
        self.sizes: list[int] = []

    def generate_many(self, requests: Sequence[object]) -> list[asyncio.Future[Generation]]:
        self.sizes.append(len(requests))
        futures = [asyncio.get_running_loop().create_future() for _ in requests]
        for future in futures:
            future.set_result(Generation([5], "t", [-1.0], [0], "stop"))
        return futures


async def test_lock_step_generates_and_searches_for_all_that_are_left_together() -> None:
    engine, search = _Engine(), _Search()
    [request] = workload.requests(1)
    environments = [_Environment(search, searches) for searches in (0, 1, 2)]
    keys = [EpisodeKey(0, "train", 0, request.task.id, sample) for sample in range(3)]
    played = await lockstep.play(engine, search, environments, keys, [request] * 3)  # type: ignore[arg-type]
    assert engine.sizes == [3, 2, 1]
    assert search.sizes == [2, 1, 0]
    assert [trajectory.num_turns for trajectory in played] == [1, 2, 3]
    assert all(trajectory.outcome == "finished" for trajectory in played)


def test_ours_is_judged_against_arm_a() -> None:
    slow = Played(40.0, 128, 1000, 500, 9000, 10.0, 10.0)
    fast = Played(10.0, 128, 1000, 500, 2000, 9.0, 9.0)
    verdicts = {row.figure: row.holds for row in figures({"lockstep": slow, "ours": fast}, 0.3, judged=True)}
    assert verdicts["throughput, ours / A, 300 ms"] is True
    assert verdicts["tokens prefilled, ours / A, 300 ms"] is True
    verdicts = {row.figure: row.holds for row in figures({"lockstep": fast, "ours": slow}, 0.3, judged=True)}
    assert verdicts["throughput, ours / A, 300 ms"] is False
    assert verdicts["tokens prefilled, ours / A, 300 ms"] is False


def test_a_run_is_read_over_all_its_steps_and_judged_by_ratio_and_interval() -> None:
    summary = {"after": {"sampled": {"em": 0.8, "em_interval": [0.74, 0.85]}}}
    rows = [{"seconds/step": seconds} for seconds in (6.0, 8.0)]
    slow = whole_step.read_run(summary, [{"dev/em": 1.0}, *rows])
    assert slow == whole_step.Run(7.0, 0.8, (0.74, 0.85))
    fast, worse = replace(slow, step_s=3.5), replace(slow, step_s=6.5, em=0.6)
    verdicts = [row.holds for row in whole_step.figures([slow], [fast], judged=True)]
    assert verdicts == [True, None, None, None, True]
    verdicts = [row.holds for row in whole_step.figures([slow], [worse], judged=True)]
    assert verdicts == [False, None, None, None, False]


async def test_the_proxy_passes_on_what_the_server_says() -> None:
    with serving(0.01) as upstream:
        url, process = proxy.start(upstream, 0.01)
        try:
            async with aiohttp.ClientSession() as session:
                body = {"queries": ["a", "b"], "topk": 3, "return_scores": True}
                answers = [
                    await (await session.post(f"{address}/retrieve", json=body)).json() for address in (upstream, url)
                ]
                assert answers[0] == answers[1]
                assert (await session.get(f"{url}/info")).status == 404
        finally:
            process.kill()
