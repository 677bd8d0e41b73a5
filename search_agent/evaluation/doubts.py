"""What makes a score say nothing about the model: told beside every score, since a table of zeros looks like one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def doubts(result: Mapping[str, Any], *, open_book: bool = False) -> list[str]:
    """One line for each reason to doubt what was measured (``verl.trainer.summary.summarize``, and reward parts).

    ``open_book``: the documents stand in the prompts, so that nobody has to search.
    """
    n, found = round(result["n"]), []
    if aborted := round(result["aborted"]):
        found.append(f"{aborted} of {aborted + n} episodes were ended by outages and are not in the score")
    if not n:
        return found
    if calls := round(result["calls"] * n):
        if result["empty_calls"] == 1.0:
            found.append(
                f"each of its {calls} searches showed nothing: does the corpus match the questions, and can an "
                "observation hold a passage (environment.max_observation_tokens)?"
            )
    elif not open_book:
        found.append("no episode searched: what is measured is what the model remembers")
    if round(result["truncated"]) == n:
        found.append("every episode was cut: raise environment.max_tokens_per_turn, or the context")
    elif result.get("answered") == 0.0:
        found.append("no episode gave an answer that the protocol can read")
    return found
