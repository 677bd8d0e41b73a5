"""The controller's bench judges growth by what an episode costs, and its stub episodes have the size that is asked."""

from __future__ import annotations

import dataclasses

from bench.controller import episodes
from bench.controller.child import Step
from bench.controller.step import figures_of_growth
from bench.controller.stubs import StubLearner, StubRollout
from verl.algorithms.config import AdvantageConfig
from verl.rollout.groups import GroupRequest
from verl.rollout.interfaces import Sampling
from verl.trainer.assign import assign

STEP = Step(1024, 2000, 1.0, 0.5, 0.2, 0.1, 0.1, 0.1, 128.0)


def test_linear_growth_holds_and_quadratic_growth_fails() -> None:
    linear = dataclasses.replace(STEP, episodes=4096, scoring=4 * STEP.seconds - 1.0, memory_mib=512.0)
    assert all(figure.holds is not False for figure in figures_of_growth(STEP, [linear]))
    quadratic = dataclasses.replace(STEP, episodes=4096, scoring=16 * STEP.seconds, memory_mib=2048.0)
    assert [figure.holds for figure in figures_of_growth(STEP, [quadratic])] == [False, False]


async def test_stubs_score_and_pack_every_token_that_was_made() -> None:
    rollout = StubRollout(tokens=401)
    requests = [GroupRequest(n, episodes.task(n), episodes.GROUP, "train", "train", 0, Sampling()) for n in range(3)]
    groups = await rollout.run_groups(requests)
    assert {len(trajectory) for group in groups for trajectory in group.trajectories} == {401}
    assert {trajectory.reward for trajectory in groups[0].trajectories} > {1.0}
    samples, _ = assign(groups, AdvantageConfig(), drop_uniform=False)
    assert StubLearner(ranks=1).update(samples, 1.0) == {"tokens": 24 * 401.0, "samples": 24.0}
