"""A discrete-event model of the loop: engines, a learner and searches as stations with measured rates. Pure.

    tasks -> [engine e: prefill and decode, batch-limited] -> [search: pure delay] -> next turn ... -> group -> buffer
          -> [learner: seconds an episode] -> [sync: engines pause] -> new version

An engine steps: one step reads the new tokens of requests that joined and gives each running request a token. Its
duration is ``step_s + request_s * running + prefill_s * tokens read + turn_s * joined``. Steps between two arrivals are
taken together, so that an event costs the same however many tokens it stands for. The learner takes a batch as the
group buffer gives it out (at most ``max_staleness`` versions ahead); while weights are loaded, engines stand still for
``sync_s``.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.scale.load import Episode, Group


@dataclass(frozen=True)
class Rates:
    """What the stations take, in seconds; measured on one engine and one learner."""

    step_s: float
    """An engine step, whatever is in it."""
    request_s: float
    """More for each request in the step."""
    prefill_s: float
    """More for each token that is read."""
    learn_s: float = 0.0
    """The learner's time for one episode, on one learner replica."""
    turn_s: float = 0.0
    """More for each request that joins, and what the environment does with it in the engine's process."""
    sync_s: float = 0.0
    """Publishing and loading a version: the learner and every engine wait."""


@dataclass(frozen=True)
class Fleet:
    """How much there is of each, and how far rollout may run ahead."""

    engines: int
    learners: int = 1
    max_running: int = 128
    """Requests in one engine's batch; more wait."""
    max_staleness: int = 0


@dataclass(frozen=True)
class Outcome:
    """What came out."""

    seconds: float
    episodes: int
    engine_busy: float
    """Mean share of time in which an engine steps."""
    learner_busy: float

    @property
    def episodes_per_s(self) -> float:
        """Throughput of the whole loop."""
        return self.episodes / self.seconds


@dataclass
class _Engine:
    running: list[tuple[int, int]] = field(default_factory=list)
    """A heap of ``(step at which it ends, episode)``."""
    waiting: deque[int] = field(default_factory=deque)
    """Episodes, in order of arrival."""
    to_read: int = 0
    steps: int = 0
    """Steps taken."""
    busy_s: float = 0.0
    stepping: bool = False
    load: int = 0
    """Open episodes."""


@dataclass
class _Open:
    """An episode under way."""

    group: int
    engine: int
    turns: Episode
    done: int = 0
    """Turns it has played."""


class _Loop:
    """One simulation. Times are seconds from the start."""

    def __init__(self, rates: Rates, groups: Sequence[Group], fleet: Fleet, steps: int) -> None:
        self.rates, self.groups, self.fleet = rates, groups, fleet
        self.steps, self.groups_per_step = steps, len(groups) // steps
        self.now, self.paused_until = 0.0, 0.0
        self.events: list[tuple[float, int, str, int, int]] = []
        self.count = 0
        self.engines = [_Engine() for _ in range(fleet.engines)]
        self.episodes: list[_Open] = []
        self.open_samples: dict[int, int] = {}
        self.started = self.version = 0
        self.finished: list[int] = []
        self.learning = False
        self.learner_busy_s = 0.0

    def at(self, when: float, kind: str, one: int = 0, two: int = 0) -> None:
        self.count += 1
        heapq.heappush(self.events, (when, self.count, kind, one, two))

    # -- rollout --

    def start_groups(self) -> None:
        """All that the buffer's rule allows: ``(version + max_staleness + 1)`` batches in all."""
        limit = min(self.version + self.fleet.max_staleness + 1, self.steps) * self.groups_per_step
        for group in range(self.started, limit):
            # All samples go to the engine with the least to do: they share their prompt.
            index = min(range(len(self.engines)), key=lambda e: self.engines[e].load)
            samples = self.groups[group]
            self.open_samples[group] = len(samples)
            self.engines[index].load += len(samples)
            for turns in samples:
                self.episodes.append(_Open(group, index, turns))
                self.ask(len(self.episodes) - 1)
        self.started = max(self.started, limit)

    def ask(self, episode: int) -> None:
        """Bring an episode's next turn to its engine."""
        engine = self.episodes[episode].engine
        self.engines[engine].waiting.append(episode)
        self.at(self.now, "wake", engine)  # after whatever else is asked at this time

    def step(self, index: int) -> None:
        """Begin the engine's next stretch of steps, unless it is in one or has nothing to do."""
        engine = self.engines[index]
        if engine.stepping:
            return
        joined = 0
        while engine.waiting and len(engine.running) < self.fleet.max_running:
            joined += 1
            number = engine.waiting.popleft()
            episode = self.episodes[number]
            turn = episode.turns[episode.done]
            heapq.heappush(engine.running, (engine.steps + turn.new_tokens, number))
            engine.to_read += turn.read_tokens
        if not engine.running:
            return
        # With something to read or in the queue one step at a time, else until the next request ends: at most a few
        # steps, so that what arrives meanwhile does not wait long.
        steps = 1 if engine.to_read else min(4, engine.running[0][0] - engine.steps)
        each = self.rates.step_s + self.rates.request_s * len(engine.running)
        seconds = steps * each + self.rates.prefill_s * engine.to_read + self.rates.turn_s * joined
        engine.to_read, engine.stepping = 0, True
        engine.busy_s += seconds
        self.at(max(self.now, self.paused_until) + seconds, "stepped", index, steps)

    def stepped(self, index: int, steps: int) -> None:
        engine = self.engines[index]
        engine.stepping = False
        engine.steps += steps
        while engine.running and engine.running[0][0] <= engine.steps:
            self.end_turn(heapq.heappop(engine.running)[1])
        self.step(index)

    def end_turn(self, number: int) -> None:
        episode = self.episodes[number]
        search_s = episode.turns[episode.done].search_s
        episode.done += 1
        if episode.done < len(episode.turns):
            self.at(self.now + search_s, "found", number)
            return
        self.engines[episode.engine].load -= 1
        self.open_samples[episode.group] -= 1
        if not self.open_samples[episode.group]:
            del self.open_samples[episode.group]
            self.finished.append(episode.group)

    # -- learner --

    def learn(self) -> None:
        """Take a batch if there is one that the staleness rule lets go first: the oldest groups must be in it."""
        size = self.groups_per_step
        if self.learning or len(self.finished) < size:
            return
        # A group of batch b must be trained on by version b + max_staleness: what is due now may not be missing.
        due = (self.version - self.fleet.max_staleness + 1) * size
        if due > 0 and any(group < due for group in self.open_samples):
            return
        self.finished.sort()
        batch, self.finished = self.finished[:size], self.finished[size:]
        self.learning = True
        episodes = sum(len(self.groups[group]) for group in batch)
        seconds = self.rates.learn_s * episodes / self.fleet.learners
        self.learner_busy_s += seconds
        self.at(self.now + seconds, "learned")

    def run(self) -> Outcome:
        self.start_groups()
        while self.version < self.steps:
            self.learn()
            self.now, _, kind, one, two = heapq.heappop(self.events)
            if kind == "stepped":
                self.stepped(one, two)
            elif kind == "wake":
                self.step(one)
            elif kind == "found":
                self.ask(one)
            elif kind == "learned":
                self.paused_until = self.now + self.rates.sync_s
                self.at(self.paused_until, "synced")
            else:
                self.learning = False
                self.version += 1
                self.start_groups()
        busy = sum(engine.busy_s for engine in self.engines) / len(self.engines) / self.now if self.now else 0.0
        return Outcome(self.now, len(self.episodes), busy, self.learner_busy_s / self.now if self.now else 0.0)


def simulate(rates: Rates, groups: Sequence[Group], fleet: Fleet, steps: int = 1) -> Outcome:
    """Play and learn the groups in ``steps`` equal batches. Raises ValueError if they cannot be."""
    if not groups or len(groups) % steps:
        raise ValueError(f"{len(groups)} groups do not make {steps} equal batches")
    return _Loop(rates, groups, fleet, steps).run()
