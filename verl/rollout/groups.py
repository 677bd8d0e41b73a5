"""What a rollout worker is asked for, and what it gives back: whole groups, by value."""

from __future__ import annotations

from dataclasses import dataclass, field

from verl.data.tasks import Task
from verl.rollout.interfaces import Sampling
from verl.trajectory import Trajectory


@dataclass(frozen=True, slots=True)
class GroupRequest:
    """Play ``samples`` episodes of one task."""

    number: int
    """Place in the order of work; it comes back with the result."""
    task: Task
    samples: int
    split: str
    """The data the task comes from; it picks the retriever."""
    stage: str
    """What the episodes are for (``train``, ``dev-greedy``); with ``step`` it enters every seed."""
    step: int
    sampling: Sampling


@dataclass(frozen=True, slots=True)
class Group:
    """The episodes of one task, ordered by sample; aborted ones included, so that counts in equal counts out."""

    number: int
    task: Task
    trajectories: list[Trajectory] = field(default_factory=list)

    @property
    def usable(self) -> list[Trajectory]:
        """The episodes that infrastructure did not end."""
        return [trajectory for trajectory in self.trajectories if trajectory.outcome != "aborted"]

    @property
    def num_aborted(self) -> int:
        """Episodes that infrastructure ended: counted, never trained on."""
        return len(self.trajectories) - len(self.usable)
