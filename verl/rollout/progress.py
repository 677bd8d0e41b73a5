"""What a rollout worker's open episodes wait for, and since when: what the watchdog reads. Pure bookkeeping.

A phase is named by what the episode waits for. Generating counts as standing still only while the engine does: a
request may rightly queue for long, a search or a score may not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, Protocol

from verl.trajectory import Segment

Phase = Literal["engine", "environment", "reward"]

NAMES: dict[Phase, str] = {"engine": "the engine", "environment": "the retriever", "reward": "the reward"}


class Watcher(Protocol):
    """Is told what an episode does, as it does it."""

    def enter(self, phase: Phase) -> None:
        """From now on the episode waits for this."""

    def wrote(self, segment: Segment) -> None:
        """The episode has one more segment."""


class Unwatched:
    """A watcher that nobody asks."""

    def enter(self, phase: Phase) -> None:
        """See ``Watcher``."""

    def wrote(self, segment: Segment) -> None:
        """See ``Watcher``."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """The episodes that wait for the same thing."""

    episodes: int
    longest_s: float
    groups: tuple[int, ...]
    """Their group numbers, those of the longest wait first."""


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One worker's open episodes at a moment."""

    waiting: dict[Phase, Waiting] = field(default_factory=dict)
    engine_still_s: float = 0.0
    """Seconds since the engine was last seen to have stepped."""

    @property
    def still_s(self) -> float:
        """How long nothing has moved for some episode; 0 if there is none."""
        spans = [
            min(waiting.longest_s, self.engine_still_s) if phase == "engine" else waiting.longest_s
            for phase, waiting in self.waiting.items()
        ]
        return max(spans, default=0.0)

    def text(self) -> str:
        """For a person: who waits for what, how many, how long, and which groups."""
        return "; ".join(
            f"{waiting.episodes} episodes wait for {NAMES[phase]}"
            + (f" (last step {self.engine_still_s:.0f} s ago)" if phase == "engine" else "")
            + f", the longest for {waiting.longest_s:.0f} s, groups {_some(waiting.groups)}"
            for phase, waiting in self.waiting.items()
        )


class Progress:
    """The open episodes of one worker."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._open: dict[EpisodeProgress, None] = {}
        self._busy_s = -1.0
        self._stepped = clock()

    @contextmanager
    def episode(self, group: int) -> Iterator[EpisodeProgress]:
        """An episode of a group is open inside the block."""
        episode = EpisodeProgress(group, self._clock)
        self._open[episode] = None
        try:
            yield episode
        finally:
            del self._open[episode]

    def status(self, engine_busy_s: float) -> WorkerStatus:
        """What all wait for now. ``engine_busy_s`` is the engine's counter: it has grown if the engine stepped."""
        now = self._clock()
        if engine_busy_s != self._busy_s:
            self._busy_s, self._stepped = engine_busy_s, now
        waiting: dict[Phase, Waiting] = {}
        for phase in NAMES:
            there = sorted((episode for episode in self._open if episode.phase == phase), key=lambda e: e.since)
            if there:
                groups = tuple(dict.fromkeys(episode.group for episode in there))
                waiting[phase] = Waiting(len(there), now - there[0].since, groups)
        return WorkerStatus(waiting, now - self._stepped)


class EpisodeProgress(Unwatched):
    """One open episode: a watcher that remembers the phase."""

    def __init__(self, group: int, clock: Callable[[], float]) -> None:
        self.group = group
        self._clock = clock
        self.enter("environment")

    def enter(self, phase: Phase) -> None:
        """From now on it waits for this."""
        self.phase = phase
        self.since = self._clock()


def _some(numbers: tuple[int, ...], shown: int = 5) -> str:
    rest = len(numbers) - shown
    return ", ".join(map(str, numbers[:shown])) + (f" and {rest} more" if rest > 0 else "")
