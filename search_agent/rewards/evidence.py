"""What each turn of an episode brought: the share of a question's evidence that its search found first."""

from __future__ import annotations

from verl.data.tasks import Task
from verl.trajectory import Trajectory

EVIDENCE = "supporting_ids"
"""Where a task's metadata names the passages that hold its evidence."""


def evidence_gains(task: Task, trajectory: Trajectory) -> tuple[float, ...] | None:
    """New supporting passages over all supporting passages, for each turn; None if the task names none.

    A passage counts once, in the turn that showed it first: finding it again brings nothing.
    """
    wanted = {str(identifier) for identifier in task.metadata.get(EVIDENCE) or ()}
    if not wanted:
        return None
    gains = [0.0] * trajectory.num_turns
    missing = set(wanted)
    for segment in trajectory.segments:
        found = {result.id for call in segment.calls for result in call.results} & missing
        missing -= found
        if found:
            gains[segment.turn] += len(found) / len(wanted)
    return tuple(gains)
