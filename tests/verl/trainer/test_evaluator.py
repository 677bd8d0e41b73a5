"""Ways of decoding are played side by side, and the best checkpoint is chosen by any number that there is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from verl.data.tasks import Task
from verl.errors import InfrastructureError, UserError
from verl.rollout.groups import Group, GroupRequest
from verl.trainer.config import DecodingConfig, EvaluationConfig
from verl.trainer.evaluator import Evaluator, chosen_score
from verl.trainer.run_folder import RunFolder
from verl.trajectory import Trajectory

TASKS = [Task(str(number), "q", ("a",)) for number in range(3)]
WAYS = (DecodingConfig(name="greedy", temperature=0.0), DecodingConfig(name="pass4", temperature=0.7, samples=4))


class Pool:
    """Plays at once; remembers what it was asked for in each call."""

    def __init__(self, aborted: str = "") -> None:
        self.aborted = aborted
        self.calls: list[list[GroupRequest]] = []

    async def run(self, requests: Sequence[GroupRequest]) -> list[Group]:
        self.calls.append(list(requests))
        assert len({request.number for request in requests}) == len(requests), "the pool tells groups apart by number"
        return [Group(request.number, request.task, self._play(request)) for request in requests]

    def _play(self, request: GroupRequest) -> list[Trajectory]:
        played = []
        for sample in range(request.samples):
            trajectory = Trajectory(request.task.id, sample)
            trajectory.outcome = "aborted" if request.stage == self.aborted else "finished"
            played.append(trajectory)
        return played


def describe(groups: Sequence[Group]) -> dict[str, Any]:
    return {"tasks": [group.task.id for group in groups], "n": sum(len(group.trajectories) for group in groups)}


def evaluator(pool: Pool) -> Evaluator:
    return Evaluator(pool, describe, WAYS)  # type: ignore[arg-type]


async def test_all_decodings_are_played_in_one_call(tmp_path: Path) -> None:
    pool, folder = Pool(), RunFolder.open(tmp_path / "run", "a: 1\n", fresh=False)
    results = await evaluator(pool).measure(TASKS, "test", "test-after", 3, keep_in=folder)
    [requests] = pool.calls
    assert [(r.stage, r.samples, r.sampling.temperature) for r in requests[::3]] == [
        ("test-after-greedy", 1, 0.0),
        ("test-after-pass4", 4, 0.7),
    ]
    assert results == {"greedy": {"tasks": ["0", "1", "2"], "n": 3}, "pass4": {"tasks": ["0", "1", "2"], "n": 12}}
    assert len(list(folder.read_trajectories("test-after-pass4", 3))) == 12


async def test_a_decoding_that_an_outage_ended_whole_is_no_score_of_zero() -> None:
    with pytest.raises(InfrastructureError, match="every episode was aborted"):
        await evaluator(Pool("dev-pass4")).measure(TASKS, "dev", "dev", 0)


def test_a_decoding_draws_by_all_that_it_names() -> None:
    named = DecodingConfig(name="published", temperature=0.95, top_p=0.7, top_k=50)
    assert (named.sampling.temperature, named.sampling.top_p, named.sampling.top_k) == (0.95, 0.7, 50)
    assert DecodingConfig(name="sampled").sampling.top_k == -1
    with pytest.raises(UserError, match="top_k is 0: write 1 or more, or -1"):
        DecodingConfig(name="none", top_k=0)


def test_the_best_checkpoint_is_chosen_by_the_metric_that_is_named() -> None:
    results: dict[str, Any] = {
        "greedy": {"em": 0.5, "f1": 0.7, "f1/nq": 0.9},
        "sampled": {"em": 0.4, "f1": 0.6, "warnings": []},
    }
    assert chosen_score(results, EvaluationConfig()) == 0.4
    assert chosen_score(results, EvaluationConfig(metric="f1")) == 0.6
    assert chosen_score(results, EvaluationConfig(metric="f1/nq", select_by="greedy")) == 0.9
    with pytest.raises(
        UserError, match=r"evaluation\.metric=f2: dev has no such number; did you mean f1\?; there are: em"
    ):
        chosen_score(results, EvaluationConfig(metric="f2"))
    with pytest.raises(UserError, match="no such number"):
        chosen_score(results, EvaluationConfig(metric="warnings"))
