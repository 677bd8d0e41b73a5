"""``trained.jsonl``: which groups each step took and how old their tokens were, one line a step.

The lines are those of one lineage of weights: what a killed process trained after the checkpoint that the run goes on
from is cut away with its weights. So no group number stands in the file twice, and none is missing at the end; and no
``staleness`` is above ``trainer.max_staleness``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from verl.rollout.groups import Group
from verl.tracking.jsonl import JsonlFile

FILE = "trained.jsonl"


class Ledger:
    """The record of one run folder."""

    def __init__(self, folder: Path) -> None:
        self._file = JsonlFile(folder / FILE)

    def record(self, step: int, groups: Sequence[Group]) -> None:
        """``groups`` were what step ``step`` (from 1) took; it trained version ``step - 1`` of the weights."""
        usable = [trajectory for group in groups for trajectory in group.usable]
        versions = [version for trajectory in usable if (version := trajectory.oldest_version()) is not None]
        row = {
            "groups": [group.number for group in groups],
            "episodes": len(usable),
            "aborted": sum(group.num_aborted for group in groups),
            "staleness": max((step - 1 - version for version in versions), default=0),
        }
        self._file.append(step, row)

    def close(self) -> None:
        """Bring the file to the disk."""
        self._file.close()
