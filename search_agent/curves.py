"""The learning curves of a run as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from search_agent.screen import new_picture, save_picture


def draw_curves(records: Sequence[dict[str, Any]], path: Path, *, warmup_steps: int) -> None:
    """Reward and searches of each step, and dev EM where it was measured, over reinforcement steps."""
    figure, (top, bottom) = new_picture(2, figsize=(8, 7), sharex=True)

    def line(axes: Any, key: str, label: str, **style: Any) -> None:
        points = [(record["step"] - warmup_steps, record[key]) for record in records if key in record]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, **style)

    line(top, "reward", "training reward, sampled", color="tab:blue", alpha=0.6)
    line(top, "em", "training EM, sampled", color="tab:cyan", alpha=0.6)
    line(top, "dev/sampled/em", "dev EM, sampled", color="tab:green", marker="o")
    line(top, "dev/greedy/em", "dev EM, greedy", color="tab:orange", marker="s")
    top.set_ylim(0, 1.02)
    top.set_ylabel("score")
    line(bottom, "searches", "searches per question, training", color="tab:purple")
    line(bottom, "dev/sampled/searches", "searches per question, dev", color="tab:pink", marker="o")
    bottom.set_ylabel("searches")
    bottom.set_ylim(bottom=0)
    bottom.set_xlabel("reinforcement step")
    save_picture(figure, (top, bottom), path)
