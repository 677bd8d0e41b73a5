"""What every command of this room begins with: is there a card, which one, and what its makers say it can do."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from bench import harness
from bench.harness import Figure

# Dense bfloat16 peak of one GPU in TFLOP/s, by a part of its name (the makers' data sheets).
PEAKS = {"H200": 989.0, "H100": 989.0, "H800": 989.0, "A100": 312.0, "A800": 312.0, "L40S": 362.0}
BUDGET_S = 90.0
"""What a command may take on a card, so that minutes on one are enough; what does not fit any more is left out."""
UNHURRIED_S = 24 * 3600.0
"""Without a card; finite, as it becomes the timeout of a process."""
GIB = 2**30
_PARTS = "parts="


def main(measure: Callable[[bool], Iterable[Figure]], cards: int = 1, *, on_cpu: bool = True) -> None:
    """The harness's ``main``, where there are so many cards; else one line and status 2.

    ``--quick`` runs the same code at a tiny size on a CPU, unless not even that says anything there (``on_cpu``).
    """
    found, quick = count(), "--quick" in sys.argv[1:]
    if found < cards and not (quick and on_cpu):
        tiny = "; --quick runs the same code at a tiny size on a CPU" if on_cpu else ""
        print(f"{cards} GPU{'s' * (cards > 1)} needed and {found} seen: nothing was measured{tiny}", file=sys.stderr)
        sys.exit(2)
    print(machine(), flush=True)
    harness.main(measure, [word for word in sys.argv[1:] if not word.startswith(_PARTS)])


def parts(known: Sequence[str]) -> list[str]:
    """What to measure, in order: ``parts=ONE,OTHER`` of the command line, or all. SystemExit on an unknown one."""
    asked = [part for word in sys.argv[1:] if word.startswith(_PARTS) for part in word.removeprefix(_PARTS).split(",")]
    for part in asked:
        if part not in known:
            raise SystemExit(f"no part {part}; there are: {', '.join(known)}")
    return asked or list(known)


def count() -> int:
    """Cards that torch sees."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def machine() -> str:
    """Card and versions, for the record."""
    import torch

    card = torch.cuda.get_device_name() if count() else "no card"
    return f"{card}; torch {torch.__version__}, Python {platform.python_version()}"


def peak_tflops(name: str) -> float | None:
    """The peak of a card of this name; None for one that is not in the table."""
    return next((peak for part, peak in PEAKS.items() if part in name), None)


class Clock:
    """The time that a command has left; without a card there is no hurry."""

    def __init__(self, budget_s: float | None = None) -> None:
        self._end = time.monotonic() + ((budget_s or BUDGET_S) if count() else UNHURRIED_S)

    @property
    def left_s(self) -> float:
        """Until the budget is used up."""
        return self._end - time.monotonic()

    def fitting(self, parts: Iterable[tuple[str, float]]) -> Iterator[str]:
        """The names of parts for which there is time, by (name, seconds that it needs at least); says what is not."""
        for name, needed_s in parts:
            if self.left_s >= needed_s:
                yield name
            else:
                print(f"{name}: left out, {self.left_s:.0f} s are left", flush=True)
