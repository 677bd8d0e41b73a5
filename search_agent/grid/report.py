"""The end of a grid: one table over settings (mean and 95 % interval over seeds), and all curves in one picture."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from search_agent.config import RunConfig
from search_agent.console.screen import new_picture, save_picture, say, screen
from search_agent.evaluation.statistics import Interval, mean_t
from search_agent.grid.members import Member
from verl.tracking.jsonl import read_metrics

Where = tuple[str, str, str]
"""Where a number stands in ``summary.json``."""


def report_grid(folder: Path, members: Sequence[Member]) -> None:
    """Print the table and the failures, and write ``results.json`` and ``curves.png`` into the grid's folder."""
    console = screen()
    settings = group(members)
    results = {setting: _results(runs) for setting, runs in settings.items()}
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    console.print(table(results))
    for member in members:
        if not member.finished:
            say(console, f"no result: {' '.join(member.swept) or member.setting} ({member.folder})")
    if any(member.finished for member in members):
        draw_curves(settings, folder / "curves.png")
        say(console, f"curves: {folder / 'curves.png'}")
    say(console, f"results: {folder / 'results.json'}")


def group(members: Iterable[Member]) -> dict[str, list[Member]]:
    """Members by setting, in order."""
    settings: dict[str, list[Member]] = {}
    for member in members:
        settings.setdefault(member.setting, []).append(member)
    return settings


def table(results: Mapping[str, Mapping[str, Any]]) -> Table:
    """One row a setting."""
    view = Table(title="on test: mean over runs, 95 % interval (Student's t) in brackets")
    view.add_column("setting")
    view.add_column("runs", justify="right")
    titles = list(dict.fromkeys(title for result in results.values() for title in result["values"]))
    for title in titles:
        view.add_column(title, justify="right")
    for setting, result in results.items():
        cells = [_cell(result["values"].get(title, [])) for title in titles]
        view.add_row(setting, f"{result['finished']} of {result['runs']}", *cells)
    return view


def draw_curves(settings: Mapping[str, Sequence[Member]], path: Path) -> None:
    """Training reward of each setting over reinforcement steps: mean over runs, and its 95 % interval as a band."""
    figure, axes = new_picture(figsize=(8, 5))
    for number, (setting, members) in enumerate(settings.items()):
        curves = [_rewards(member.folder) for member in members if member.finished]
        if curves:
            middle, low, high = mean_curve(curves)
            steps = range(1, len(middle) + 1)
            label = f"{setting} ({len(curves)} runs)" if len(curves) > 1 else setting
            axes.plot(steps, middle, color=f"C{number % 10}", label=label)
            axes.fill_between(steps, low, high, color=f"C{number % 10}", alpha=0.15, linewidth=0)
    axes.set_xlabel("reinforcement step")
    axes.set_ylabel("training reward, sampled")
    save_picture(figure, [axes], path)


def mean_curve(curves: Sequence[Sequence[float]]) -> tuple[list[float], list[float], list[float]]:
    """Mean, lower and upper end of its interval at each step that all curves reach; one curve is its own interval."""
    middle, low, high = [], [], []
    for values in zip(*(curve[: min(map(len, curves))] for curve in curves), strict=True):
        interval = mean_t(values) if len(values) > 1 else Interval(values[0], values[0], values[0], 1)
        middle.append(interval.estimate)
        low.append(interval.low)
        high.append(interval.high)
    return middle, low, high


def _columns(config: RunConfig) -> dict[str, Where]:
    """The metric that chooses, before and after, by every decoding after; and what two hops gained, where known."""
    evaluation = config.evaluation
    names, chosen, metric = [way.name for way in evaluation.decodings], evaluation.select_by, evaluation.metric
    order = [chosen, *(name for name in names if name != chosen)]
    columns: dict[str, Where] = {f"before {chosen} {metric}": ("before", chosen, metric)}
    columns |= {f"after {name} {metric}": ("after", name, metric) for name in order}
    return columns | {f"after {names[0]} em_two_hop": ("after", names[0], "em_two_hop")}


def _results(members: Sequence[Member]) -> dict[str, Any]:
    summaries = [json.loads((member.folder / "summary.json").read_text()) for member in members if member.finished]
    values = {title: _numbers(summaries, where) for title, where in _columns(members[0].config).items()}
    return {"runs": len(members), "finished": len(summaries), "values": values}


def _numbers(summaries: Iterable[Any], where: Sequence[str]) -> list[float]:
    """The number of each run that has it."""
    found = []
    for summary in summaries:
        for key in where:
            summary = summary.get(key) if isinstance(summary, dict) else None
        if summary is not None:
            found.append(float(summary))
    return found


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.3f}"
    interval = mean_t(values)
    return f"{interval.estimate:.3f}\n[{interval.low:.2f}, {interval.high:.2f}]"


def _rewards(folder: Path) -> list[float]:
    return [row["reward"] for row in read_metrics(folder / "metrics.jsonl") if "reward" in row]
