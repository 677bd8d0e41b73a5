"""Checkpoints of the whole loop: written at once, or while training goes on, and made one by a rename when whole."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl.cluster.learners import LearnerGroup
from verl.trainer.run_folder import RunFolder
from verl.trainer.state import LoopState


@dataclass(frozen=True)
class _Begun:
    """A checkpoint whose files may still be on their way."""

    path: Path
    loop: dict[str, Any]
    links: tuple[str, ...]
    """The best ones that it is."""


class Saver:
    """At most one checkpoint is on its way; until it has its name, a killed run goes on from the one before."""

    def __init__(self, folder: RunFolder, learners: LearnerGroup, *, keep: int, background: bool) -> None:
        """``keep`` newest resumable checkpoints stay, besides the best ones."""
        self._folder = folder
        self._learners = learners
        self._keep = keep
        self._background = background
        self._begun: _Begun | None = None

    async def save(self, state: LoopState, global_step: int, *, hugging_face: bool) -> None:
        """Save the loop and the learner as they are now."""
        await self.settle(wait=True)
        path = self._folder.begin_checkpoint(global_step)
        previous = next(reversed(self._folder.resumable()), None)
        await self._learners.save(path, hugging_face=hugging_face, background=self._background, previous=previous)
        links = tuple(name for name, best in state.best.items() if best.step == state.step)
        self._begun = _Begun(path, state.to_json(), links)
        await self.settle(wait=not self._background)

    async def settle(self, *, wait: bool) -> None:
        """Give the checkpoint that is on its way its name, once it is whole. Raises what kept it from being written.

        Without ``wait`` nothing happens while it is being written.
        """
        begun = self._begun
        if begun is None or not await self._learners.saved(wait=wait):
            return
        self._begun = None
        final = self._folder.commit_checkpoint(begun.path, begun.loop)
        for name in begun.links:
            self._folder.link(name, final)
        self._folder.retain(self._keep)
