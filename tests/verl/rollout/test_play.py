"""One loop plays episodes for everyone: any engine, a bounded number at once, each as it ends."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verl.data.tasks import Task
from verl.errors import InfrastructureError, UserError
from verl.rollout.interfaces import Engine, Environment, Generation, Observation, Prompt, Sampling, Score, Turn
from verl.rollout.play import EpisodeRequest, play, requests_for
from verl.rollout.progress import Phase, Unwatched
from verl.trajectory import Outcome, Segment, Trajectory

TASKS = [Task(f"t{number}", "q", ("a",)) for number in range(6)]


@dataclass
class Engine2:
    """Any object that generates; counts who waits, and takes a number of turns of the event loop for each task."""

    delays: dict[int, int] = field(default_factory=dict)
    open: int = 0
    most: int = 0
    fail: Exception | None = None
    finished: int = 0
    seeds: list[int] = field(default_factory=list)

    async def generate(self, token_ids: Sequence[int], turn: Turn, sampling: Sampling, seed: int) -> Generation:
        self.seeds.append(seed)
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            for _ in range(self.delays.get(token_ids[0], 1)):
                await asyncio.sleep(0)
            if self.fail and token_ids[0] == 0:
                raise self.fail
        finally:
            self.open -= 1
        self.finished += 1
        return Generation([7], "say", [0.0], [0], "stop")


class OneTurn:
    """One turn, then an observation that ends the episode."""

    def __init__(self, task: Task) -> None:
        self.number, self.over = int(task.id[1:]), False

    async def start(self) -> Prompt:
        return Prompt([self.number], "ask")

    def next_turn(self) -> Turn | None:
        return None if self.over else Turn(4)

    async def observe(self, generation: Generation) -> Observation | None:
        self.over = True
        return Observation([8], "read")

    def outcome(self) -> tuple[Outcome, str]:
        return "finished", ""


class SmallAgent:
    def __init__(self, score_error: Exception | None = None) -> None:
        self.score_error, self.splits = score_error, list[str]()

    async def open(self) -> None: ...

    def environment(self, task: Task, split: str) -> Environment:
        self.splits.append(split)
        return OneTurn(task)

    async def score(self, task: Task, trajectory: Trajectory) -> Score:
        if self.score_error and task.id == "t0":
            raise self.score_error
        return Score(1.0, {"em": 1.0})

    def stats(self) -> dict[str, float]:
        return {}

    async def close(self) -> None: ...


def asked(samples: int = 1) -> Iterator[EpisodeRequest]:
    return requests_for(TASKS, "test", "eval", seed=3, samples=samples)


@settings(max_examples=50, deadline=None)
@given(st.none() | st.integers(1, 8), st.dictionaries(st.integers(0, 5), st.integers(1, 20)), st.integers(1, 3))
async def test_every_episode_is_played_once_and_never_more_at_a_time(
    concurrency: int | None, delays: dict[int, int], samples: int
) -> None:
    engine, agent = Engine2(delays), SmallAgent()
    done = [
        (request.task.id, request.key.sample, trajectory.reward)
        async for request, trajectory in play(asked(samples), agent, engine, concurrency)
    ]
    assert sorted(done) == [(task.id, sample, 1.0) for task in TASKS for sample in range(samples)]
    assert engine.most <= (concurrency or len(done))
    assert len(set(engine.seeds)) == len(done), "each episode has draws of its own"
    assert set(agent.splits) == {"test"}


async def test_episodes_come_as_they_end() -> None:
    delays = {0: 30, 1: 20, 2: 10}
    done = [r.task.id async for r, _ in play(asked(), SmallAgent(), Engine2(delays), 6)]
    assert done[-3:] == ["t2", "t1", "t0"]


async def test_requests_are_drawn_when_there_is_room() -> None:
    drawn: list[str] = []

    def lazily() -> Iterator[EpisodeRequest]:
        for request in asked():
            drawn.append(request.task.id)
            yield request

    async with aclosing(play(lazily(), SmallAgent(), Engine2(), 2)) as playing:
        await anext(playing)
        assert len(drawn) < len(TASKS)


async def test_an_outage_aborts_one_episode_and_the_others_go_on() -> None:
    engine = Engine2(fail=InfrastructureError("gone"))
    outcomes = {r.task.id: (t.outcome, t.reward) async for r, t in play(asked(), SmallAgent(), engine)}
    assert outcomes.pop("t0") == ("aborted", None)
    assert set(outcomes.values()) == {("finished", 1.0)}


async def test_an_outage_that_the_reward_meets_aborts_too_and_unscored_episodes_have_no_reward() -> None:
    agent = SmallAgent(InfrastructureError("no judge"))
    [first, *_] = sorted([(r.task.id, t) async for r, t in play(asked(), agent, Engine2())], key=lambda pair: pair[0])
    assert (first[1].outcome, first[1].reason) == ("aborted", "reward: no judge")
    assert all([t.reward is None async for _, t in play(asked(), agent, Engine2(), score=False)])


async def test_what_is_no_outage_ends_the_loop_and_leaves_nothing_running() -> None:
    engine = Engine2(dict.fromkeys(range(1, 6), 1000))
    with pytest.raises(UserError, match="a wrong reward"):
        async for _ in play(asked(), SmallAgent(UserError("a wrong reward")), engine):
            pass
    assert (engine.open, engine.finished) == (0, 1)


async def test_who_leaves_leaves_nothing_running() -> None:
    engine = Engine2(dict.fromkeys(range(1, 6), 1000))
    async with aclosing(play(asked(), SmallAgent(), engine)) as playing:
        async for _ in playing:
            break
    assert engine.open == 0


async def test_a_watcher_is_told_phases_and_segments_and_a_seat_ends_before_the_score() -> None:
    told: list[str] = []

    class Noting(Unwatched):
        def enter(self, phase: Phase) -> None:
            told.append(phase)

        def wrote(self, segment: Segment) -> None:
            told.append(segment.kind)

    @contextmanager
    def watch(request: EpisodeRequest) -> Iterator[Noting]:
        yield Noting()
        told.append("over")

    @contextmanager
    def seat(request: EpisodeRequest) -> Iterator[Engine]:
        yield Engine2()
        told.append("seat left")

    one = requests_for(TASKS[:1], "test", "eval", seed=0)
    assert [t.outcome async for _, t in play(one, SmallAgent(), Engine2(), watch=watch, seat=seat)] == ["finished"]
    played = ["prompt", "engine", "environment", "generated", "observation"]
    assert told == [*played, "seat left", "reward", "over"]


def test_the_loop_needs_neither_ray_nor_vllm_nor_torch() -> None:
    code = "import sys, verl.rollout.play; print(sorted({'ray', 'vllm', 'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
