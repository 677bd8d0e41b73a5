"""The named numbers that every reward function reports, so that runs with different rewards can be compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from search_agent.protocols.base import Reading
from search_agent.rewards.text import cover_match, exact_match, f1, word_match
from verl.data.tasks import Task

Match = Callable[[str, Sequence[str]], float]


def measure(task: Task, reading: Reading, refine_match: Match = word_match) -> dict[str, float]:
    """``em, f1, cover`` of the answer (0 without one), ``answered``, ``format_valid``, ``searches``, ``refine_hit``.

    Raises ValueError if the task has no accepted answer.
    """
    golds = task.golden_answers
    if not golds:
        raise ValueError(f"task {task.id}: no golden answer to score against")
    answer = reading.answer
    return {
        "em": exact_match(answer, golds) if answer is not None else 0.0,
        "f1": f1(answer, golds) if answer is not None else 0.0,
        "cover": cover_match(answer, golds) if answer is not None else 0.0,
        "answered": float(answer is not None),
        "format_valid": float(reading.format_valid),
        "searches": float(len(reading.searches)),
        "refine_hit": refine_match(" ".join(reading.refinements), golds),
    }
