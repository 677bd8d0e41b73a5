"""What the loop plays, turn by turn: drawn from distributions, or taken from episodes that were played. Pure."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from verl.trajectory import ToolCall, Trajectory


class Turn(NamedTuple):
    """One generation, and the search behind it."""

    read_tokens: int
    """What the engine has not read yet: the prompt, or the last search's observation."""
    new_tokens: int
    """What it generates."""
    search_s: float
    """Seconds until the next turn may begin; not used behind the last turn."""


Episode = tuple[Turn, ...]
Group = tuple[Episode, ...]


@dataclass(frozen=True)
class Load:
    """Distributions of what is played."""

    groups_per_step: int
    group_size: int = 8
    turns: int = 5
    """Generations of an episode; a search comes between two."""
    prompt_tokens: int = 200
    observation_tokens: int = 500
    turn_tokens: int = 64
    """Mean of a geometric distribution, before it is cut."""
    max_turn_tokens: int = 256
    search_median_s: float = 0.3
    search_sigma: float = 0.5
    tail_share: float = 0.02
    tail_s: float = 5.0


def draw(load: Load, steps: int, seed: int = 0) -> list[Group]:
    """The groups of all steps."""
    chance = random.Random(seed)
    return [
        tuple(tuple(_turns(load, sample, chance)) for sample in range(load.group_size))
        for _ in range(steps * load.groups_per_step)
    ]


def _turns(load: Load, sample: int, chance: random.Random) -> Iterator[Turn]:
    # Samples of a task share their prompt: the first one reads it.
    read = load.prompt_tokens if sample == 0 else 0
    for _ in range(load.turns):
        yield Turn(read, _turn_tokens(load, chance), _search_s(load, chance))
        read = load.observation_tokens


def _turn_tokens(load: Load, chance: random.Random) -> int:
    stop = 1 / load.turn_tokens
    if stop >= 1:
        return 1
    return min(load.max_turn_tokens, 1 + int(math.log(1 - chance.random()) / math.log(1 - stop)))


def _search_s(load: Load, chance: random.Random) -> float:
    if chance.random() < load.tail_share:
        return load.tail_s
    return load.search_median_s * math.exp(chance.gauss(0.0, load.search_sigma))


def played(trajectories: Iterable[Trajectory], search_s: Callable[[ToolCall], float]) -> list[Group]:
    """The groups of these episodes, in the order of their first one; ``search_s`` says what a call's search took."""
    groups = defaultdict[str, list[Episode]](list)
    for trajectory in trajectories:
        samples = groups[trajectory.task_id]
        samples.append(_played_turns(trajectory, bool(samples), search_s))
    return [tuple(samples) for samples in groups.values()]


def _played_turns(trajectory: Trajectory, prompt_is_read: bool, search_s: Callable[[ToolCall], float]) -> Episode:
    read, turns = 0, list[Turn]()
    for segment in trajectory.segments:
        if segment.kind == "generated":
            turns.append(Turn(read, len(segment), 0.0))
            read = 0
        elif segment.kind == "observation":
            turns[-1] = turns[-1]._replace(search_s=max(map(search_s, segment.calls), default=0.0))
            read = len(segment)
        elif not prompt_is_read:
            read = len(segment)
    return tuple(turns)
