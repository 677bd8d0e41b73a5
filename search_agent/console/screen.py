"""What a person reads on the screen and in pictures: every text is shown as it is, never read as markup."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TextIO

from rich.console import Console


def screen(file: TextIO | None = None) -> Console:
    """A console that takes no text for markup (``[q_proj]``), emoji (``:key:``) or a pattern to colour."""
    return Console(file=file, markup=False, emoji=False, highlight=False)


def say(console: Console, *lines: str) -> None:
    """Print lines of any length without breaking them: they may be copied."""
    for line in lines:
        console.print(line, soft_wrap=True)


def new_picture(rows: int = 1, **layout: Any) -> tuple[Any, Any]:
    """``(figure, axes)`` without a window; ``save_picture`` writes it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(rows, layout="constrained", **layout)


def save_picture(figure: Any, axes: Any, path: Path) -> None:
    """Grid and legend on all ``axes``, then the file. Dollar signs in a legend set no formula."""
    from matplotlib import pyplot

    for one in axes:
        one.grid(alpha=0.3)
        if one.has_data():
            for text in one.legend(loc="best", fontsize="small").get_texts():
                text.set_parse_math(False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
