"""Answers in a LaTeX box: ``\\boxed{..}``. Pure functions of strings."""

from __future__ import annotations

import re

_BOX = re.compile(r"\\f?box(?:ed)?\s*\{")
_STYLED = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf)\s*\{([^{}]*)\}")


def last_boxed(text: str) -> str | None:
    """The contents of the last ``\\boxed{..}`` or ``\\fbox{..}``; None without one, or if its braces never close."""
    boxes = list(_BOX.finditer(text))
    if not boxes:
        return None
    begin, depth = boxes[-1].end(), 1
    for position in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[begin:position].strip()
    return None


def plain(text: str) -> str:
    """Without the LaTeX commands that set words in a style: ``\\text{Paris}`` is ``Paris``."""
    while (stripped := _STYLED.sub(r"\1", text)) != text:
        text = stripped
    return text
