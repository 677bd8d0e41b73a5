"""Where each passage of a search stands in the observation that shows it."""

from __future__ import annotations

from collections.abc import Sequence

from search_agent.viewer.pieces import utf16_length
from verl.trajectory import ToolResult


def passage_starts(text: str, results: Sequence[ToolResult]) -> list[int] | None:
    """Where the line that names each result's title begins, in UTF-16 units; None unless all are there, in order.

    A protocol renders passages as it likes, and titles are all that is recorded of them: what cannot be found is not
    guessed. The text before the first start and after the last passage's last line is the protocol's own.
    """
    starts: list[int] = []
    position = 0
    for result in results:
        found = text.find(result.title, position) if result.title else -1
        if found < 0:
            return None
        begin = max(text.rfind("\n", 0, found) + 1, text.rfind(">", 0, found) + 1, position)
        starts.append(utf16_length(text[:begin]))
        position = found + len(result.title)
    return starts
