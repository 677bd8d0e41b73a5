"""Progress on the screen: a live bar on a terminal, plain lines anywhere else. ``NO_COLOR`` is honoured by rich.

Only numbers that say whether a run is well are shown; the rest is in ``metrics.jsonl``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

WARMUP_LINE_EVERY_S = 10.0
"""Warm-up steps are quick and many: without a terminal, one line per so many seconds."""

# What is shown of a step, in this order: the metric, how it is called on the screen, and how it is written.
_SHOWN = (
    ("warmup/loss", "loss", "{:.3f}"),
    ("reward", "reward", "{:.3f}"),
    ("em", "EM", "{:.3f}"),
    ("searches", "searches", "{:.2f}"),
    ("warmup/tokens_per_s", "tokens/s", "{:,.0f}"),
    ("tokens_per_s", "tokens/s", "{:,.0f}"),
)


class ConsoleTracker:
    """Shows each phase (warm-up, reinforcement) with its own steps and time left."""

    def __init__(
        self,
        total_steps: int,
        warmup_steps: int = 0,
        *,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total, self._warmup = total_steps, warmup_steps
        self._console = console or Console(highlight=False)
        self._clock = clock
        self._phases: dict[str, tuple[int, float]] = {}
        self._last_line = float("-inf")
        self._bar: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        if self._console.is_interactive:
            columns = (TextColumn("{task.description}"), BarColumn(24), TextColumn("{task.fields[text]}"))
            self._bar = Progress(*columns, console=self._console)
            self._bar.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show one step, or one evaluation on dev."""
        phase = "warm-up" if step <= self._warmup else "step"
        done, total = (step, self._warmup) if phase == "warm-up" else (step - self._warmup, self._total - self._warmup)
        dev = {name.removeprefix("dev/"): value for name, value in metrics.items() if name.startswith("dev/")}
        if dev:
            self._say(f"dev at {phase} {done}: {_dev(dev)}")
        text = "  ".join(f"{label} {form.format(metrics[name])}" for name, label, form in _SHOWN if name in metrics)
        if not text:
            return
        text = f"{done}/{total}  {text}  {self._time_left(phase, done, total)}"
        if self._bar is not None:
            self._move(self._bar, phase, done, total, text)
        elif phase == "step" or done == total or self._clock() - self._last_line >= WARMUP_LINE_EVERY_S:
            self._last_line = self._clock()
            self._say(f"{phase} {text}")

    def close(self) -> None:
        """Leave the screen as it is and give the terminal back."""
        if self._bar is not None:
            self._bar.stop()

    def _move(self, bar: Progress, phase: str, done: int, total: int, text: str) -> None:
        if phase not in self._tasks:
            self._tasks[phase] = bar.add_task(phase, total=total, text="")
        bar.update(self._tasks[phase], completed=done, text=text)

    def _time_left(self, phase: str, done: int, total: int) -> str:
        """From the pace since this process began the phase, evaluations and checkpoints included."""
        first, began = self._phases.setdefault(phase, (done, self._clock()))
        if done == first:
            return "ETA -"
        seconds = round((self._clock() - began) / (done - first) * (total - done))
        hours, rest = divmod(seconds, 3600)
        return f"ETA {hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"ETA {rest // 60}:{rest % 60:02d}"

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)


def _dev(metrics: Mapping[str, float]) -> str:
    """The exact match of each way of decoding, ``greedy EM 0.975, sampled EM 0.570``."""
    scores = {name.removesuffix("/em"): value for name, value in metrics.items() if name.endswith("/em")}
    return ", ".join(f"{name} EM {value:.3f}" for name, value in scores.items())
