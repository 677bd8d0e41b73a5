"""An episode in colour: what the policy wrote, what it was shown, how it ended."""

from __future__ import annotations

from rich.text import Text

from search_agent.protocols.base import SearchProtocol
from verl.trajectory import Trajectory

_SEGMENTS = {"prompt": "bold", "generated": "green", "observation": "blue"}
_KINDS = {"think": "green", "refine": "cyan", "search": "bold yellow", "answer": "bold magenta"}
_OTHER_KIND = "yellow"


def transcript(trajectory: Trajectory, protocol: SearchProtocol) -> Text:
    """The whole episode; text from the policy and from passages is shown as it is and never read as markup."""
    text = Text()
    for segment in trajectory.segments:
        text.append_text(in_colour(segment.kind, segment.text, protocol))
    reward = "not scored" if trajectory.reward is None else f"reward {trajectory.reward:.2f}"
    reason = f": {printable(trajectory.reason)}" if trajectory.reason else ""
    text.append(f"\n[{trajectory.outcome}{reason}, {reward}]", style="dim")
    return text


def in_colour(kind: str, text: str, protocol: SearchProtocol) -> Text:
    """One segment; within what the policy wrote, thoughts, searches and answers differ."""
    shown = Text(printable(text), style=_SEGMENTS[kind])
    if kind == "generated":
        for span in protocol.spans(shown.plain):
            shown.stylize(_KINDS.get(span.kind, _OTHER_KIND), span.begin, span.end)
    return shown


def printable(text: str) -> str:
    """Without control characters, which could rewrite the terminal; line breaks and tabs stay."""
    return "".join(character for character in text if character.isprintable() or character in "\n\t")
