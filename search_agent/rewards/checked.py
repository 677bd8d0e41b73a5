"""What a reward function may answer, and how its failures are told: one error that names plug-in, task and place."""

from __future__ import annotations

import math
import traceback

from verl.config.build import Plugin
from verl.data.tasks import Task
from verl.errors import InfrastructureError, UserError
from verl.rollout.interfaces import RewardFunction, Score
from verl.trainer.summary import RESERVED
from verl.trajectory import Trajectory


def name_scoring(reward: Plugin, task: Task, trajectory: Trajectory) -> str:
    """What is being scored by what, for a message."""
    return f"reward {reward.module}: task {task.id}, sample {trajectory.sample}"


def score_here(function: RewardFunction, what: str, task: Task, trajectory: Trajectory) -> Score:
    """The score. Raises UserError, which begins with ``what``, if the function raises or answers with no such thing.

    Raises InfrastructureError through: what the reward asks outside failed, which says nothing about the episode.
    """
    try:
        score = function(task, trajectory)
    except (UserError, InfrastructureError):
        raise
    except Exception as error:
        raise UserError(f"{what}: {describe(error)}") from error
    return checked(score, what)


def describe(error: Exception) -> str:
    """Type and message, and where in the plug-in it happened."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"


def checked(score: object, what: str) -> Score:
    """``score`` if it is one. Raises UserError if it is of another kind or holds a number that is not finite."""
    if not isinstance(score, Score):
        raise UserError(f"{what}: it returned {type(score).__name__}: return verl.rollout.interfaces.Score")
    if taken := sorted(RESERVED & set(score.parts)):
        raise UserError(f"{what}: its part {taken[0]!r} has the name of a number that every step counts: rename it")
    for name, value in {"reward": score.reward, **score.parts}.items():
        if not math.isfinite(value):
            raise UserError(f"{what}: {name} is {value}: return a finite number")
    return score
