"""Which engine plays which episode: samples of one task together, the least loaded engine otherwise.

Samples of a task share their prompt, so one engine reads it once; an episode stays where its earlier turns are cached.
Pure bookkeeping: no engine is called. Invariants: an episode has one engine from ``route`` to ``done``; the open
samples of a task are on one engine; an engine that left gets nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

EngineT = TypeVar("EngineT", bound=Hashable)
Episode = tuple[str, int]
"""A task's id (unique among what is under way) and the index of the sample."""


class Router(Generic[EngineT]):
    """Places episodes on engines; engines may join and leave at any time."""

    def __init__(self, engines: Iterable[EngineT] = ()) -> None:
        # In order of joining, which decides between equals: the same calls give the same routes.
        self._load: dict[EngineT, int] = {}
        self._tasks: dict[str, EngineT] = {}
        self._open: defaultdict[str, set[int]] = defaultdict(set)
        for engine in engines:
            self.join(engine)

    @property
    def engines(self) -> list[EngineT]:
        """Who may be given episodes, in order of joining."""
        return list(self._load)

    def load(self, engine: EngineT) -> int:
        """Open episodes on an engine."""
        return self._load[engine]

    def join(self, engine: EngineT) -> None:
        """Take a new engine into service. Raises ValueError if it is in service already."""
        if engine in self._load:
            raise ValueError(f"{engine} is in service already")
        self._load[engine] = 0

    def leave(self, engine: EngineT) -> list[Episode]:
        """Take an engine out; returns its open episodes, which are closed and have to start again elsewhere."""
        del self._load[engine]
        lost = [task for task, home in self._tasks.items() if home == engine]
        episodes = [(task, sample) for task in lost for sample in sorted(self._open.pop(task))]
        for task in lost:
            del self._tasks[task]
        return episodes

    def route(self, task: str, sample: int) -> EngineT:
        """The engine of an episode, for its first turn or a later one. Raises LookupError if there is no engine."""
        if not self._load:
            raise LookupError("no engine is in service")
        if task not in self._tasks:
            self._tasks[task] = min(self._load, key=self._load.__getitem__)
        engine = self._tasks[task]
        if sample not in self._open[task]:
            self._open[task].add(sample)
            self._load[engine] += 1
        return engine

    def is_open(self, task: str, sample: int) -> bool:
        """Whether an episode has an engine now: routed, not done, and its engine has not left."""
        return sample in self._open.get(task, ())

    def done(self, task: str, sample: int) -> None:
        """The episode ended. Raises KeyError if it was not open."""
        if not self.is_open(task, sample):
            raise KeyError(f"sample {sample} of task {task} is not under way")
        self._open[task].remove(sample)
        self._load[self._tasks[task]] -= 1
        if not self._open[task]:
            del self._open[task], self._tasks[task]
