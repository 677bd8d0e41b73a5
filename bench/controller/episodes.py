"""Episodes without an engine: the shape of a searching episode of so many tokens, its texts such as a reward reads."""

from __future__ import annotations

import random
from functools import lru_cache

import numpy as np

from bench.retrieval.world import words
from verl.data.tasks import Task
from verl.rollout.groups import Group, GroupRequest
from verl.trajectory import ToolCall, ToolResult, Trajectory

GROUP = 8
SEARCHES = 4
_VOCABULARY = 150_000


def task(number: int) -> Task:
    """A question; every other episode of it is answered right."""
    return Task(f"q{number}", f"which thing is number {number}", (f"thing {number}",))


def group(request: GroupRequest, tokens: int) -> Group:
    """Every episode of a request: a prompt, four searches with their passages, an answer; ``tokens`` in all."""
    samples = [episode(request, sample, tokens) for sample in range(request.samples)]
    return Group(request.number, request.task, samples)


def episode(request: GroupRequest, sample: int, tokens: int) -> Trajectory:
    """A tenth prompt, a quarter generated, the rest passages."""
    draw = random.Random(f"{request.number}/{sample}")
    rng = np.random.default_rng((request.number, sample))
    prompt, turn = tokens // 10, tokens // 20
    passage = (tokens - prompt - turn * (SEARCHES + 1)) // SEARCHES
    last = tokens - prompt - turn * SEARCHES - passage * SEARCHES
    result = Trajectory(request.task.id, sample)
    result.append_prompt(_ids(rng, prompt).tolist(), _text(draw, prompt))
    for number in range(SEARCHES):
        kind = "refine" if number else "think"
        query = _text(draw, 6)
        _generate(result, rng, turn, f"<{kind}> {_text(draw, turn - 16)} </{kind}> <search> {query} </search>")
        found = tuple(ToolResult(f"{draw.randrange(10**6)}", 20.0 - rank, _text(draw, 2)) for rank in range(3))
        shown = f"\n\n<documents>{_text(draw, passage - 8)}</documents>\n\n"
        result.append_observation(_ids(rng, passage).tolist(), shown, [ToolCall("search", query, found, 0.05)])
    answer = request.task.golden_answers[0] if sample % 2 else _text(draw, 2)
    _generate(result, rng, last, f"<refine> {_text(draw, last - 16)} </refine> <answer> {answer} </answer>")
    result.outcome = "finished"
    return result


def _generate(trajectory: Trajectory, rng: np.random.Generator, count: int, text: str) -> None:
    # Lists of Python numbers, as an engine gives them.
    logprobs = (-rng.exponential(1.0, count)).tolist()
    trajectory.append_generated(_ids(rng, count).tolist(), text, logprobs, [0] * count, "stop")


def _ids(rng: np.random.Generator, count: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    return rng.integers(0, _VOCABULARY, count, dtype=np.int32)


def _text(draw: random.Random, count: int) -> str:
    inventory = _inventory()
    begin = draw.randrange(len(inventory) - count)
    return " ".join(inventory[begin : begin + count])


@lru_cache(maxsize=1)
def _inventory() -> list[str]:
    return words()[:20_000]
