"""Answers in a LaTeX box: ``\\boxed{..}``. Pure functions of strings."""

from __future__ import annotations

import re

_BOXES = tuple(re.compile(rf"\\{name}\s*\{{") for name in ("boxed", "fbox"))
_STYLED = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf)\s*\{([^{}]*)\}")


def last_boxed(text: str) -> str | None:
    """The contents of the last ``\\boxed{..}``, or of the last ``\\fbox{..}`` where there is none.

    None without a box, or if its braces never close.
    """
    boxes = next(filter(None, (list(box.finditer(text)) for box in _BOXES)), [])
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
