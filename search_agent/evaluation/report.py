"""``python -m search_agent.evaluation.report RUN [RUN ...]``: results as Markdown and a picture, for a paper or a PR.

Writes ``report.md`` and ``report.png`` into the first run's folder, or into ``out=FOLDER``: every evaluation of every
run with 95 % intervals, each data set, what the searches brought, and the difference where there are two.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from search_agent.console.command import run_command, words_and_options
from search_agent.evaluation.compare import Comparison, compare
from search_agent.evaluation.diagnostics import accuracy_by_searches, summarise
from search_agent.evaluation.outcomes import SCORES, Outcomes, read_outcomes, stages_of
from search_agent.evaluation.statistics import Interval, bootstrap, wilson
from verl.durable import write_atomically
from verl.errors import UserError

USAGE = "write: python -m search_agent.evaluation.report RUN [RUN ...] [out=FOLDER]"
_TITLES = {"em": "EM", "f1": "F1", "precision": "precision", "recall": "recall", "acc": "cover match"}
_SHARES = (
    ("evidence_found", "all evidence shown"),
    ("right_without_evidence", "right without evidence"),
    ("answered_without_evidence", "answered without evidence"),
    ("wrong_with_evidence", "evidence found, still wrong"),
    ("refinement_keeps_answer", "refinement keeps the answer"),
    ("duplicate_queries", "duplicate queries"),
    ("empty_searches", "searches that found nothing"),
    ("refused_searches", "searches refused"),
    ("cached_searches", "searches from the cache"),
)


def main(arguments: Sequence[str]) -> int:
    """Write both files."""
    runs, folder = read_arguments(arguments)
    found = [read_outcomes(run, stage) for run in runs for stage in _evaluations(run)]
    folder.mkdir(parents=True, exist_ok=True)
    draw(found, folder / "report.png")
    write_atomically(folder / "report.md", markdown(found, "report.png"))
    print(f"report: {folder / 'report.md'}, {folder / 'report.png'}")
    return 0


def read_arguments(arguments: Sequence[str]) -> tuple[list[Path], Path]:
    """The runs and where to write. Raises UserError on anything that is not understood."""
    runs, options = words_and_options(arguments, ("out",), USAGE)
    if not runs:
        raise UserError(f"name a run; {USAGE}")
    return list(map(Path, runs)), Path(options.get("out", runs[0]))


def _evaluations(run: Path) -> list[str]:
    """Every stage that is not training, what was before training first; training where there is nothing else."""
    stages = sorted(stages_of(run), key=lambda stage: ("before" not in stage, stage))
    return [stage for stage in stages if stage != "train"] or stages


# -- Markdown --


def markdown(found: Sequence[Outcomes], picture: str) -> str:
    """The whole report."""
    parts = [
        "# Evaluation",
        _table(["", "questions", "failed", *(_TITLES[score] for score in SCORES)], map(_scores, found)),
        "95 % intervals in brackets, over questions. Failed episodes (ended by infrastructure) count as wrong.",
        f"![scores, accuracy against searches, evidence after each search]({picture})",
    ]
    if any(len(outcomes.sets()) > 1 for outcomes in found):
        parts += ["## Exact match by data set", _sets(found)]
    parts += ["## Searches and evidence", _searches(found)]
    if differences := [(pair, compare([pair[0]], [pair[1]])) for pair in _pairs(found)]:
        parts += ["## Differences", *(_difference(*pair, comparison) for pair, comparison in differences)]
    return "\n\n".join(parts) + "\n"


def exact_match(outcomes: Outcomes) -> Interval:
    """Wilson's interval where each question was played once, else the bootstrap over questions."""
    values = outcomes.means("em", outcomes.tasks)
    if all(len(samples) == 1 for samples in outcomes.samples.values()):
        return wilson(sum(value == 1 for value in values), len(values))
    return bootstrap(values, seed=0)


def _scores(outcomes: Outcomes) -> list[str]:
    others = (bootstrap(outcomes.means(score, outcomes.tasks), seed=0) for score in SCORES if score != "em")
    cells = [str(interval) for interval in (exact_match(outcomes), *others)]
    return [name_of(outcomes), str(len(outcomes.tasks)), str(outcomes.failed), *cells]


def _sets(found: Sequence[Outcomes]) -> str:
    names = sorted({name for outcomes in found for name in outcomes.sets()})
    rows = []
    for outcomes in found:
        sets = outcomes.sets()
        means = {name: fmean(outcomes.means("em", members)) for name, members in sets.items()}
        cells = [f"{means[name]:.3f} ({len(sets[name])})" if name in sets else "-" for name in names]
        rows.append([name_of(outcomes), *cells, f"{fmean(means.values()):.3f}"])
    return _table(["", *(name or "unnamed" for name in names), "mean of the sets"], rows)


def _searches(found: Sequence[Outcomes]) -> str:
    summaries = [summarise(outcomes.diagnoses) for outcomes in found]
    rows = [["searches per question", *(f"{summary['searches']:.2f}" for summary in summaries)]]
    for key, title in _SHARES:
        if any(key in summary for summary in summaries):
            rows.append([title, *(f"{summary[key]:.3f}" if key in summary else "-" for summary in summaries)])
    waits = [summary.get("latency_s") for summary in summaries]
    if any(waits):
        cells = [f"{1000 * w['median']:.1f} / {1000 * w['p95']:.1f}" if w else "-" for w in waits]
        rows.append(["latency, median / 95th percentile (ms)", *cells])
    return _table(["", *map(name_of, found)], rows)


def _pairs(found: Sequence[Outcomes]) -> list[tuple[Outcomes, Outcomes]]:
    """Before and after training of one run; the first run and each other at the same stage."""
    pairs = []
    for one in found:
        for other in found:
            later = other.stage == one.stage.replace("before", "after") != one.stage and other.name == one.name
            elsewhere = one.name == found[0].name != other.name and one.stage == other.stage
            if (later or elsewhere) and set(one.tasks) & set(other.tasks):
                pairs.append((one, other))
    return pairs


def _difference(before: Outcomes, after: Outcomes, comparison: Comparison) -> str:
    rows = [
        [_TITLES[score], f"{row.before:.3f}", f"{row.after:.3f}", str(row.difference)]
        for score, row in comparison.scores.items()
    ]
    title = f"### {_escaped(name_of(before))} → {_escaped(name_of(after))}, {comparison.questions} questions"
    lines = [title, _table(["", "before", "after", "difference, paired bootstrap"], rows)]
    if comparison.mcnemar:
        lost, won, p = comparison.mcnemar
        lines.append(f"{won} questions won, {lost} lost; McNemar's exact test p = {p:.3g}.")
    return "\n\n".join(lines)


def name_of(outcomes: Outcomes) -> str:
    """Run and stage."""
    return f"{outcomes.name} {outcomes.stage.replace('-', ' ')}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    body = [f"| {' | '.join(map(_escaped, row))} |" for row in (head, *rows)]
    return "\n".join([body[0], f"|---{'|--:' * (len(head) - 1)}|", *body[1:]])


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is."""
    plain = " ".join(text.split())
    return "".join(f"\\{character}" if character in "\\`*_[]<>|#&" else character for character in plain)


# -- the picture --


def draw(found: Sequence[Outcomes], path: Path) -> None:
    """Exact match with its interval, accuracy against searches spent, and evidence after each search."""
    from search_agent.console.screen import new_picture, save_picture

    figure, axes = new_picture(3, figsize=(8, 10))
    top, middle, bottom = axes
    for number, outcomes in enumerate(found):
        interval, colour = exact_match(outcomes), f"C{number % 10}"
        error = [[interval.estimate - interval.low], [interval.high - interval.estimate]]
        top.barh([number], [interval.estimate], xerr=error, color=colour, alpha=0.8, capsize=3)
        _by_searches(middle, outcomes, colour)
        found_at = summarise(outcomes.diagnoses).get("found_at", [])
        bottom.plot(range(1, len(found_at) + 1), found_at, marker="o", color=colour, label=name_of(outcomes))
    top.set(xlim=(0, 1.02), xlabel="exact match")
    top.set_yticks(range(len(found)), [name_of(outcomes) for outcomes in found])  # two runs may have one name
    top.invert_yaxis()
    for label in top.get_yticklabels():
        label.set_parse_math(False)
    middle.set(ylim=(0, 1.02), xlabel="searches spent (area: share of episodes)", ylabel="right")
    bottom.set(ylim=(0, 1.02), xlabel="search", ylabel="all evidence shown")
    for one in (middle, bottom):
        one.xaxis.get_major_locator().set_params(integer=True)
    top.grid(alpha=0.3)
    save_picture(figure, (middle, bottom), path)


def _by_searches(axes: Any, outcomes: Outcomes, colour: str) -> None:
    rows = accuracy_by_searches(outcomes.diagnoses)
    total = sum(row["n"] for row in rows)
    spent, right = [row["searches"] for row in rows], [row["right"] for row in rows]
    axes.plot(spent, right, color=colour, alpha=0.6, label=name_of(outcomes))
    axes.scatter(spent, right, s=[300 * row["n"] / total for row in rows], color=colour, alpha=0.6)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:], help_of="report"))
