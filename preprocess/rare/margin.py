"""``python -m preprocess.rare.margin model=FOLDER reference=FOLDER labelled=FILE``: what KTO moved, on other outputs.

The implicit reward of an output is ``beta * (log p - log p of the reference)``, summed over its tokens. Printed are its
means over desirable and undesirable outputs, and the margin between them with its 95 % interval (Welch's).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path

import numpy as np
import numpy.typing as npt

from search_agent.data.traces import NO_DAY, read_traces
from search_agent.evaluation.statistics import Interval, mean_t
from verl.config.arguments import parse, run
from verl.data.samples import TrainingSample
from verl.errors import UserError, at_least
from verl.learner.config import LearnerConfig
from verl.rollout.episodes import read_episodes


@dataclass(frozen=True)
class Config:
    """Keys of ``python -m preprocess.rare.margin``."""

    model: str
    """Folder of the model that KTO made (``RUN/best_dev``)."""
    reference: str
    """Folder of the model that it began with."""
    labelled: str
    """Outputs that it did not learn from: episodes (``trajectories/test-before-sampled_000000.jsonl.gz``), desirable
    where their reward is above 0; or rows with a ``label`` (jsonl)."""
    beta: float = 0.1
    """As ``warmup.loss.kto_beta`` was."""
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    """Precision and packing of the passes that score."""

    def __post_init__(self) -> None:
        at_least(self, 0, "beta")


def read(config: Config) -> tuple[list[TrainingSample], npt.NDArray[np.bool_]]:
    """Outputs, and which are desirable. Raises UserError unless there are two or more of both kinds."""
    path = Path(config.labelled)
    if path.suffix == ".gz":
        played = [each.trajectory for each in read_episodes(path) if each.trajectory.outcome != "aborted"]
        rows = [(trajectory, float(bool(trajectory.reward and trajectory.reward > 0))) for trajectory in played]
    else:
        traces = read_traces(path, Path(config.model), date.fromisoformat(NO_DAY), desirable=True)
        rows = [(trajectory, credit) for trajectory, credit, _ in traces]
    rows = [(trajectory, credit) for trajectory, credit in rows if trajectory.num_policy_tokens]
    wanted = np.array([credit > 0 for _, credit in rows], np.bool_)
    if min(wanted.sum(), (~wanted).sum()) < 2:
        raise UserError(
            f"labelled={path}: {wanted.sum()} desirable of {len(rows)} outputs: two of either kind are needed"
        )
    return [TrainingSample.from_trajectory(trajectory, credit) for trajectory, credit in rows], wanted


def rewards(config: Config, samples: Sequence[TrainingSample]) -> npt.NDArray[np.float64]:
    """The implicit reward of each output (nats, times beta)."""
    from verl.learner.learner import Learner

    ours, theirs = (
        np.array([each.sum(dtype=np.float64) for each in Learner(folder, config.learner, seed=0).logprobs(samples)])
        for folder in (config.model, config.reference)
    )
    return config.beta * (ours - theirs)


def margin(found: npt.NDArray[np.float64], wanted: npt.NDArray[np.bool_]) -> Interval:
    """Mean over desirable ones less that over undesirable ones, with the interval of Welch (1947)."""
    from scipy.stats import ttest_ind

    test = ttest_ind(found[wanted], found[~wanted], equal_var=False)
    ends = test.confidence_interval(0.95)
    return Interval(float(found[wanted].mean() - found[~wanted].mean()), float(ends.low), float(ends.high), len(found))


def main(arguments: Sequence[str]) -> int:
    """Measure by ``key=value`` arguments; returns the exit status."""
    config = parse(Config, arguments)
    samples, wanted = read(config)
    from verl.learner.__main__ import join_group

    join_group()
    found = rewards(config, samples)
    told = {
        "desirable": mean_t(found[wanted]),
        "undesirable": mean_t(found[~wanted]),
        "margin": margin(found, wanted),
    }
    print(json.dumps({name: asdict(interval) for name, interval in told.items()}, indent=2))
    return 0


if __name__ == "__main__":
    run(main)
