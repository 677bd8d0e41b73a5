"""The learning curves of a run as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from search_agent.console.screen import new_picture, save_picture


def draw_curves(records: Sequence[dict[str, Any]], path: Path, *, warmup_steps: int) -> None:
    """Reward and searches of each step, and dev EM where it was measured, over reinforcement steps."""
    figure, (top, bottom) = new_picture(2, figsize=(8, 7), sharex=True)

    def line(axes: Any, key: str, label: str, **style: Any) -> None:
        points = [(record["step"] - warmup_steps, record[key]) for record in records if key in record]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, **style)

    line(top, "reward", "training reward, sampled", alpha=0.6)
    line(top, "em", "training EM, sampled", alpha=0.6)
    line(bottom, "searches", "training")
    for decoding in sorted({key.split("/")[1] for record in records for key in record if key.startswith("dev/")}):
        line(top, f"dev/{decoding}/em", f"dev EM, {decoding}", marker="o")
        line(bottom, f"dev/{decoding}/searches", f"dev, {decoding}", marker="o")
    top.set_ylim(0, 1.02)
    top.set_ylabel("score")
    bottom.set_ylabel("searches per question")
    bottom.set_ylim(bottom=0)
    bottom.set_xlabel("reinforcement step")
    save_picture(figure, (top, bottom), path)
