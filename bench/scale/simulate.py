"""A discrete-event model of the loop: engines, a learner and searches as stations with measured rates. Pure.

    tasks -> [engine e: prefill and decode, batch-limited] -> [search: pure delay] -> next turn ... -> group -> buffer
          -> [learner: seconds an episode] -> [sync: engines pause] -> new version

An engine steps: one step reads the new tokens of requests that joined and gives each running request a token. Its
duration is ``step_s + request_s * running + prefill_s * tokens read``. Steps between two arrivals are taken together,
so that an event costs the same however many tokens it stands for. The learner takes a batch as the group buffer gives
it out (at most ``max_staleness`` versions ahead); while weights are loaded, engines stand still for ``sync_s``.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from dataclasses import dataclass, field


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
    sync_s: float = 0.0
    """Publishing and loading a version: the learner and every engine wait."""


@dataclass(frozen=True)
class Load:
    """What is played."""

    groups_per_step: int
    group_size: int = 8
    turns: int = 5
    """Generations of an episode; a search comes between two."""
    prompt_tokens: int = 200
    observation_tokens: int = 500
    turn_tokens: int = 64
    """Mean of a geometric distribution."""
    search_median_s: float = 0.3
    search_sigma: float = 0.5
    tail_share: float = 0.02
    tail_s: float = 5.0


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
    waiting: deque[tuple[int, int, int]] = field(default_factory=deque)
    """``(episode, tokens to read, tokens to generate)``, in order of arrival."""
    to_read: int = 0
    steps: int = 0
    """Steps taken."""
    busy_s: float = 0.0
    stepping: bool = False
    load: int = 0
    """Open episodes."""


class _Loop:
    """One simulation. Times are seconds from the start."""

    def __init__(self, rates: Rates, load: Load, fleet: Fleet, seed: int) -> None:
        self.rates, self.load, self.fleet = rates, load, fleet
        self.draw = random.Random(seed)
        self.now, self.paused_until = 0.0, 0.0
        self.events: list[tuple[float, int, str, int, int]] = []
        self.count = 0
        self.engines = [_Engine() for _ in range(fleet.engines)]
        self.home: dict[int, int] = {}
        self.turns_left: dict[int, int] = {}
        self.open_samples: dict[int, int] = {}
        self.started = self.version = 0
        self.finished: list[int] = []
        self.learning = False
        self.learner_busy_s = 0.0

    def at(self, when: float, kind: str, one: int = 0, two: int = 0) -> None:
        self.count += 1
        heapq.heappush(self.events, (when, self.count, kind, one, two))

    # -- rollout --

    def start_groups(self, steps: int) -> None:
        """All that the buffer's rule allows: ``(version + max_staleness + 1)`` batches in all."""
        limit = min(self.version + self.fleet.max_staleness + 1, steps) * self.load.groups_per_step
        for group in range(self.started, limit):
            engine = min(range(len(self.engines)), key=lambda e: self.engines[e].load)
            self.open_samples[group] = self.load.group_size
            self.engines[engine].load += self.load.group_size
            for sample in range(self.load.group_size):
                episode = group * self.load.group_size + sample
                self.home[episode], self.turns_left[episode] = engine, self.load.turns
                # Samples of a task share their prompt: the first one reads it.
                self.ask(episode, self.load.prompt_tokens if sample == 0 else 0)
        self.started = max(self.started, limit)

    def ask(self, episode: int, read: int) -> None:
        engine = self.home[episode]
        self.engines[engine].waiting.append((episode, read, self.turn_tokens()))
        self.at(self.now, "wake", engine)  # after whatever else is asked at this time

    def turn_tokens(self) -> int:
        stop = 1 / self.load.turn_tokens
        if stop >= 1:
            return 1
        return 1 + int(math.log(1 - self.draw.random()) / math.log(1 - stop))

    def step(self, index: int) -> None:
        """Begin the engine's next stretch of steps, unless it is in one or has nothing to do."""
        engine = self.engines[index]
        if engine.stepping:
            return
        while engine.waiting and len(engine.running) < self.fleet.max_running:
            episode, read, tokens = engine.waiting.popleft()
            heapq.heappush(engine.running, (engine.steps + tokens, episode))
            engine.to_read += read
        if not engine.running:
            return
        # With something to read or in the queue one step at a time, else until the next request ends: at most a few
        # steps, so that what arrives meanwhile does not wait long.
        steps = 1 if engine.to_read else min(4, engine.running[0][0] - engine.steps)
        each = self.rates.step_s + self.rates.request_s * len(engine.running)
        seconds = steps * each + self.rates.prefill_s * engine.to_read
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

    def end_turn(self, episode: int) -> None:
        self.turns_left[episode] -= 1
        if self.turns_left[episode]:
            self.at(self.now + self.search_s(), "found", episode)
            return
        del self.turns_left[episode]
        self.engines[self.home.pop(episode)].load -= 1
        group = episode // self.load.group_size
        self.open_samples[group] -= 1
        if not self.open_samples[group]:
            del self.open_samples[group]
            self.finished.append(group)

    def search_s(self) -> float:
        if self.draw.random() < self.load.tail_share:
            return self.load.tail_s
        return self.load.search_median_s * math.exp(self.draw.gauss(0.0, self.load.search_sigma))

    # -- learner --

    def learn(self) -> None:
        """Take a batch if there is one that the staleness rule lets go first: the oldest groups must be in it."""
        size = self.load.groups_per_step
        if self.learning or len(self.finished) < size:
            return
        # A group of batch b must be trained on by version b + max_staleness: what is due now may not be missing.
        due = (self.version - self.fleet.max_staleness + 1) * size
        if due > 0 and any(group < due for group in self.open_samples):
            return
        self.finished.sort()
        del self.finished[:size]
        self.learning = True
        seconds = self.rates.learn_s * size * self.load.group_size / self.fleet.learners
        self.learner_busy_s += seconds
        self.at(self.now + seconds, "learned")

    def run(self, steps: int) -> Outcome:
        self.start_groups(steps)
        while self.version < steps:
            self.learn()
            self.now, _, kind, one, two = heapq.heappop(self.events)
            if kind == "stepped":
                self.stepped(one, two)
            elif kind == "wake":
                self.step(one)
            elif kind == "found":
                self.ask(one, self.load.observation_tokens)
            elif kind == "learned":
                self.paused_until = self.now + self.rates.sync_s
                self.at(self.paused_until, "synced")
            else:
                self.learning = False
                self.version += 1
                self.start_groups(steps)
        busy = sum(engine.busy_s for engine in self.engines) / len(self.engines) / self.now if self.now else 0.0
        episodes = steps * self.load.groups_per_step * self.load.group_size
        return Outcome(self.now, episodes, busy, self.learner_busy_s / self.now if self.now else 0.0)


def simulate(rates: Rates, load: Load, fleet: Fleet, steps: int, seed: int = 0) -> Outcome:
    """Run the loop until the weights have version ``steps``."""
    return _Loop(rates, load, fleet, seed).run(steps)
