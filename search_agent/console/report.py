"""What a finished run shows a person: the table before and after, the curves, three episodes, what to try next."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from search_agent.config import RunConfig
from search_agent.console.screen import say, screen
from search_agent.console.transcript import transcript
from search_agent.planning.prediction import against_measured, steps_of
from search_agent.planning.preflight import known_shape
from search_agent.planning.rates import read_rates
from verl.errors import UserError
from verl.tracking.jsonl import read_metrics
from verl.trajectory import Trajectory

if TYPE_CHECKING:
    from verl.trainer.run_folder import RunFolder

_ROWS = (
    ("em", "exact match"),
    ("em_one_hop", "  one hop"),
    ("em_two_hop", "  two hops"),
    ("format_valid", "format valid"),
    ("searches", "searches per question"),
    ("evidence/found", "evidence found"),
    ("evidence/wrong_with", "  and still wrong"),
    ("evidence/right_without", "right without evidence"),
    ("f1", "F1"),
    ("cover", "cover match"),
    ("judge", "correct by the judge"),
    ("accuracy", "execution accuracy"),
)
_RANKED = re.compile(r"[a-z]+@\d+")
"""Measures of a ranking at a depth, such as ``recall@3``."""


def print_report(folder: RunFolder, config: RunConfig) -> None:
    """Print the report of a finished run, and draw its curves unless they are drawn."""
    summary = folder.read_json("summary.json")
    assert summary is not None
    console = screen()
    results = {"before": summary["before"], "after": summary["after"]}
    first = config.evaluation.decodings[0]  # greedy, unless the run has others
    questions = summary["after"][first.name]["n"] // first.samples
    console.print(evaluation_table(f"clean test, {questions} questions, 95 % intervals in brackets", results))
    say(console, *warning_lines(results), *closing_lines(summary, folder), *prediction_lines(folder, config))
    picture = folder.path / "curves.png"
    if not picture.exists():
        from search_agent.console.curves import draw_curves

        draw_curves(read_metrics(folder.metrics), picture, warmup_steps=summary["warmup_steps"])
    protocol = config.protocol.build()
    for title, trajectory in pick_samples(folder, first.name):
        console.print(Text(f"\n{title}", style="bold"))
        console.print(transcript(trajectory, protocol))
    say(console, f"\ncurves: {picture}", *next_commands(folder, config))


def evaluation_table(title: str, results: dict[str, dict[str, Any]]) -> Table:
    """A column for each decoding of each named result, with 95 % intervals where they are known."""
    table = Table(title=title)
    table.add_column("")
    columns = []
    for name, result in results.items():
        for how, column in result.items():
            table.add_column(f"{name}\n{how}".strip(), justify="right")
            columns.append(column)
    sets = sorted({key for column in columns for key in column if key.startswith("em/") and f"{key}_n" in column})
    by_set = [(key, f"  {key.removeprefix('em/')}") for key in sets] + [("em/mean", "  mean of the sets")]
    ranked = sorted({key for column in columns for key in column if _RANKED.fullmatch(key)})
    for key, label in (_ROWS[0], *by_set, *_ROWS[1:], *((key, key) for key in ranked)):
        if any(key in column for column in columns):
            table.add_row(label, *(_cell(column, key) for column in columns))
    return table


def warning_lines(results: dict[str, dict[str, Any]]) -> Iterator[str]:
    """What makes a number of the table meaningless, one line each."""
    for name, result in results.items():
        for how, column in result.items():
            for warning in column.get("warnings", ()):
                yield f"warning: {f'{name} {how}'.strip()}: {warning}"


def _cell(column: dict[str, Any], key: str) -> str:
    if key not in column:
        return "-"
    interval = column.get(f"{key}_interval")
    bounds = f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else ""
    return f"{column[key]:.3f}{bounds}"


def closing_lines(summary: dict[str, Any], folder: RunFolder) -> Iterator[str]:
    """One-line facts: time, steps, outages, agreement of the two engines, disk."""
    total = sum(summary["seconds"].values())
    stages = ", ".join(f"{stage} {seconds:.0f}" for stage, seconds in summary["seconds"].items())
    yield f"{summary['steps']} steps in {total:.0f} s ({stages})"
    difference = summary["logprob_diff_max"]
    yield f"aborted episodes: {summary['aborted']}; largest trainer-rollout log-prob difference: {difference:.1e}"
    yield f"run folder: {folder.path} ({folder.disk_bytes() / 2**20:.0f} MiB on disk)"


def prediction_lines(folder: RunFolder, config: RunConfig) -> Iterator[str]:
    """What a step took, and what was to be expected, where the rates of its card are known."""
    shape = known_shape(config)
    try:
        rates = read_rates()
    except UserError as error:  # a table of another version, say: the run has ended well all the same
        yield f"no step is predicted beside it: {error}"
        return
    told = against_measured(config, shape, steps_of(read_metrics(folder.metrics)), rates) if shape is not None else None
    if told:
        yield told


def pick_samples(folder: RunFolder, decoding: str) -> list[tuple[str, Trajectory]]:
    """Up to three episodes: one question before and after training, and one failure after, where there are such."""
    before = {t.task_id: t for t in folder.read_trajectories(f"test-before-{decoding}", 0)}
    after = {t.task_id: t for t in folder.read_trajectories(f"test-after-{decoding}", 0)}
    picked: list[tuple[str, Trajectory]] = []
    learned = next((t for t in after.values() if _em(t) == 1 and _em(before[t.task_id]) == 0), None)
    if learned is not None:
        picked.append(("before training, wrong:", before[learned.task_id]))
        picked.append(("the same question after training, right:", learned))
    failed = next((t for t in after.values() if _em(t) == 0), None)
    if failed is not None:
        picked.append(("after training, still wrong:", failed))
    if len(picked) < 3:
        shown = {trajectory.task_id for _, trajectory in picked}
        others = [t for t in after.values() if t.task_id not in shown]
        picked += [("after training:", trajectory) for trajectory in others[: 3 - len(picked)]]
    return picked


def _em(trajectory: Trajectory) -> float:
    return trajectory.reward_parts.get("em", 0.0)


def next_commands(folder: RunFolder, config: RunConfig) -> Sequence[str]:
    """What to type next."""
    model = shlex.quote(f"model={folder.path}")
    return (
        "\ntry next:",
        f"  bash cmd/eval.sh {model}",
        f'  bash cmd/ask.sh {model} "your question"',
        f"  bash cmd/train.sh seed={config.seed + 1}        # another world, other weights, other draws",
        "  bash cmd/train.sh recipe=autorefine_qwen2.5_3b  # on a machine with 8 GPUs",
    )
