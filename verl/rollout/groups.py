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
    greedy: bool = False
    """Whether to play one greedy episode of the task besides, whose reward is a baseline."""
    first: int = 0
    """The number of the first of these samples; more than 0 where others of the task are asked for by themselves."""

    @property
    def numbers(self) -> range:
        """The numbers of the samples."""
        return range(self.first, self.first + self.samples)


@dataclass(frozen=True, slots=True)
class Group:
    """The episodes of one task, ordered by sample; aborted ones included, so that counts in equal counts out."""

    number: int
    task: Task
    trajectories: list[Trajectory] = field(default_factory=list)
    greedy: Trajectory | None = None
    """The greedy episode where one was asked for; it is never trained on."""

    @property
    def played(self) -> list[Trajectory]:
        """Every episode, the greedy one last: what is counted and written down."""
        return self.trajectories if self.greedy is None else [*self.trajectories, self.greedy]

    @property
    def usable(self) -> list[Trajectory]:
        """The episodes that infrastructure did not end."""
        return [trajectory for trajectory in self.trajectories if trajectory.outcome != "aborted"]

    @property
    def num_aborted(self) -> int:
        """Episodes that infrastructure ended: counted, never trained on."""
        return len(self.trajectories) - len(self.usable)
