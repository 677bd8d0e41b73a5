"""An episode in colour: what the policy wrote, what it was shown, how it ended."""

from __future__ import annotations

import re

from rich.text import Text

from verl.trajectory import Trajectory

_SEGMENTS = {"prompt": "bold", "generated": "green", "observation": "blue"}
_BLOCKS = {"think": "green", "refine": "cyan", "search": "bold yellow", "answer": "bold magenta"}
# For the eye only: what a block means is read by the protocol.
_BLOCK = re.compile(rf"<({'|'.join(_BLOCKS)})>.*?(?:</\1>|$)", re.DOTALL)


def transcript(trajectory: Trajectory) -> Text:
    """The whole episode; text from the policy and from passages is shown as it is and never read as markup."""
    text = Text()
    for segment in trajectory.segments:
        text.append_text(in_colour(segment.kind, segment.text))
    reward = "not scored" if trajectory.reward is None else f"reward {trajectory.reward:.2f}"
    reason = f": {trajectory.reason}" if trajectory.reason else ""
    text.append(f"\n[{trajectory.outcome}{reason}, {reward}]", style="dim")
    return text


def in_colour(kind: str, text: str) -> Text:
    """One segment; within what the policy wrote, thoughts, searches and answers differ."""
    shown = Text(printable(text), style=_SEGMENTS[kind])
    if kind == "generated":
        for block in _BLOCK.finditer(shown.plain):
            shown.stylize(_BLOCKS[block[1]], *block.span())
    return shown


def printable(text: str) -> str:
    """Without control characters, which could rewrite the terminal; line breaks and tabs stay."""
    return "".join(character for character in text if character.isprintable() or character in "\n\t")
