"""A user's reward that misbehaves ends in one clear error, and the pool goes on."""

from __future__ import annotations

import asyncio
import importlib
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from search_agent.protocols import autorefine
from search_agent.rewards import em
from search_agent.rewards.checked import checked, name_scoring, score_here
from search_agent.rewards.pool import Config, RewardPool, build, reward_function
from verl.config.build import Plugin
from verl.data.tasks import Task
from verl.errors import InfrastructureError, UserError
from verl.rollout.interfaces import Score
from verl.trajectory import Trajectory

TASK = Task("t-7", "who?", ("mara",))
USER_REWARD = """
import os, time
from dataclasses import dataclass
from verl.errors import InfrastructureError
from verl.rollout.interfaces import Score

@dataclass(frozen=True)
class Config:
    mode: str = "answers"

def build(config, protocol):
    if config.mode == "cannot be built":
        raise RuntimeError("no such model")

    def reward(task, trajectory):
        answer = protocol.read(trajectory).answer
        if answer == "raise":
            raise KeyError("gold")
        if answer == "outage":
            raise InfrastructureError("the judge does not answer")
        if answer == "hang":
            time.sleep(600)
        if answer == "die":
            os._exit(3)
        if answer == "number":
            return 1.0
        return Score(float("nan") if answer == "nan" else float(answer == "mara"), {"length": len(answer)})

    return reward
"""


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., RewardPool]]:
    (tmp_path / "users_reward.py").write_text(textwrap.dedent(USER_REWARD))
    monkeypatch.syspath_prepend(str(tmp_path))
    import users_reward  # type: ignore[import-not-found]

    pools: list[RewardPool] = []

    def make(mode: str = "answers", **settings: Any) -> RewardPool:
        plugin = Plugin("users_reward", users_reward.Config(mode))
        pools.append(build(Config(plugin, **settings), autorefine.build(autorefine.Config())))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()
    del sys.modules["users_reward"]


def episode(answer: str) -> Trajectory:
    trajectory = Trajectory("t-7", 2)
    trajectory.append_prompt([1], "q")
    trajectory.append_generated([1], f"<think> t </think> <answer> {answer} </answer>", [0.0], [0], "stop")
    return trajectory


def test_a_good_reward_scores_in_order_on_all_processes(make: Callable[..., RewardPool]) -> None:
    scores = make(workers=2).score_all((TASK, episode(answer)) for answer in ["mara", "john", "mara"])
    assert [score.reward for score in scores] == [1, 0, 1]
    assert scores[1].parts == {"length": 4}


def test_every_misbehaviour_is_named_and_the_pool_goes_on(make: Callable[..., RewardPool]) -> None:
    pool = make(deadline_s=2)
    for answer, message in [
        ("raise", r"reward users_reward: task t-7, sample 2: KeyError: 'gold' \(.*users_reward.py, line \d+\)"),
        ("hang", r"task t-7, sample 2: no result after 2 s: it hangs, or needs a longer deadline_s"),
        ("die", r"its process died \(exit code 3\)"),
        ("nan", r"reward is nan: return a finite number"),
        ("number", r"it returned float: return verl.rollout.interfaces.Score"),
    ]:
        with pytest.raises(UserError, match=message):
            pool(TASK, episode(answer))
        assert pool(TASK, episode("mara")).reward == 1


@pytest.mark.parametrize("name", ["n", "aborted", "reward"])
def test_a_part_with_the_name_of_a_count_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"reward r: its part '{name}' has the name of a number that every step counts"):
        checked(Score(1.0, {"em": 1.0, name: 2.0}), "reward r")


async def test_the_event_loop_serves_others_while_a_reward_hangs(make: Callable[..., RewardPool]) -> None:
    pool = make(deadline_s=60, workers=2)
    hanging = asyncio.ensure_future(pool.score_aside(TASK, episode("hang")))
    for answer in ("mara", "john", "mara"):
        assert (await pool.score_aside(TASK, episode(answer))).reward == (answer == "mara")
    assert not hanging.done()
    pool.close()
    with pytest.raises(UserError, match="its process died"):
        await hanging


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            KeyError("gold"),
            r"reward my.reward: task t-7, sample 2: KeyError: 'gold' \(.*test_reward_pool.py, line \d+\)",
        ),
        (Score(float("nan")), "sample 2: reward is nan: return a finite number"),
        (Score(1.0, {"hits": float("inf")}), "hits is inf"),
        (None, "it returned NoneType"),
    ],
)
def test_a_reward_in_the_workers_own_process_is_checked_alike(answer: Any, message: str) -> None:
    def reward(task: Task, trajectory: Trajectory) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    what = name_scoring(Plugin("my.reward", None), TASK, episode("x"))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=message):
        score_here(reward, what, TASK, episode("x"))


def test_an_outage_that_a_reward_meets_is_no_mistake_of_the_user(make: Callable[..., RewardPool]) -> None:
    def outage(task: Task, trajectory: Trajectory) -> Score:
        raise InfrastructureError("the judge does not answer")

    with pytest.raises(InfrastructureError, match="the judge does not answer"):
        score_here(outage, "reward", TASK, episode("x"))
    pool = make()
    with pytest.raises(InfrastructureError, match=r"task t-7, sample 2: .*the judge does not answer"):
        pool(TASK, episode("outage"))
    assert pool(TASK, episode("mara")).reward == 1


@pytest.mark.usefixtures("make")
def test_a_reward_of_ones_own_runs_in_a_pool_and_ours_where_it_is_called() -> None:
    protocol = autorefine.build(autorefine.Config())
    users = Plugin("users_reward", importlib.import_module("users_reward").Config())
    pool = reward_function(users, protocol)
    assert isinstance(pool, RewardPool)
    assert pool(TASK, episode("mara")).reward == 1
    pool.close()
    here = reward_function(Plugin("search_agent.rewards.em", em.Config()), protocol)
    assert not isinstance(here, RewardPool)
    assert here(TASK, episode("mara")).reward == 1


def test_a_reward_that_cannot_be_built_says_why(make: Callable[..., RewardPool]) -> None:
    pool = make("cannot be built")
    for message in ("users_reward: start: RuntimeError: no such model", "it could not be built"):
        with pytest.raises(UserError, match=message):
            pool(TASK, episode("mara"))


@pytest.mark.parametrize(("key", "value"), [("workers", 0), ("deadline_s", 0.0), ("start_deadline_s", -1.0)])
def test_impossible_settings_are_refused(key: str, value: float) -> None:
    with pytest.raises(UserError, match=key):
        Config(Plugin("users_reward", None), **{key: value})  # type: ignore[arg-type]
