"""``python -m search_agent.evaluation.compare BEFORE AFTER``: is it better, and by how much, on the same questions?

``BEFORE`` and ``AFTER`` are run folders or files of episodes, several seeds with commas between them; one run alone is
compared with itself before training. ``stage=`` names what is read of each (``test-after-greedy``, ``eval-sampled``),
``out=FILE`` writes everything as JSON. Questions are matched by id; an episode that infrastructure ended counts as
wrong on either side.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from search_agent.console.command import run_command, words_and_options
from search_agent.evaluation.outcomes import SCORES, Outcomes, read_outcomes, stages_of
from search_agent.evaluation.statistics import (
    Interval,
    majority_at_k,
    mcnemar,
    mean_t,
    paired_bootstrap,
    pass_at_k,
)
from verl.durable import write_atomically
from verl.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

USAGE = "write: python -m search_agent.evaluation.compare BEFORE[,SEED ...] AFTER[,SEED ...] [stage=NAME] [out=FILE]"
_RESAMPLING_SEED = 0
Measure = Callable[[Sequence[str | None], Sequence[float], int], float]
"""Of one question: from the answers of its samples, their exact match, and k."""


@dataclass(frozen=True)
class Difference:
    """One number of both sides, and the difference with its paired bootstrap interval over questions."""

    before: float
    after: float
    difference: Interval


@dataclass(frozen=True)
class Comparison:
    """What two sides, each of one or several seeds, say on the questions that both have."""

    questions: int
    only_before: int
    only_after: int
    failed_before: int
    """Episodes that infrastructure ended; they count as wrong."""
    failed_after: int
    scores: Mapping[str, Difference]
    by_set: Mapping[str, Difference]
    """Exact match in each data set, where there are several; ``mean`` is the mean over the sets."""
    mcnemar: tuple[int, int, float] | None
    """Questions lost, questions won, p; None where a question was played more than once."""
    seeds: Mapping[str, Interval]
    """Mean exact match over seeds with Student's t interval, for each side that has several."""
    sampled: Mapping[str, tuple[float, float]]
    """``pass@k`` and ``maj@k`` of both sides, where both have several samples of every question."""


def compare(before: Sequence[Outcomes], after: Sequence[Outcomes]) -> Comparison:
    """Compare two sides. Raises UserError if they share no question, or disagree about one."""
    questions, only_before, only_after = _shared(before, after)
    columns = {score: (_means(before, score, questions), _means(after, score, questions)) for score in SCORES}
    sets = {name: shared for name, members in before[0].sets().items() if (shared := set(members) & set(questions))}
    by_set = {
        name: _difference(*(_pick(column, questions, members) for column in columns["em"]))
        for name, members in sorted(sets.items())
        if len(sets) > 1
    }
    return Comparison(
        questions=len(questions),
        only_before=only_before,
        only_after=only_after,
        failed_before=sum(side.failed for side in before),
        failed_after=sum(side.failed for side in after),
        scores={score: _difference(*column) for score, column in columns.items()},
        by_set=by_set | ({"mean": _macro(columns["em"], questions, sets)} if by_set else {}),
        mcnemar=_mcnemar(before, after, questions),
        seeds={
            name: mean_t([fmean(outcomes.means("em", questions)) for outcomes in side])
            for name, side in (("before", before), ("after", after))
            if len(side) > 1
        },
        sampled=_sampled(before, after, questions),
    )


def _shared(before: Sequence[Outcomes], after: Sequence[Outcomes]) -> tuple[list[str], int, int]:
    """Questions that every run has, in order, and how many each side has besides."""
    everywhere = set.intersection(*(set(outcomes.tasks) for outcomes in (*before, *after)))
    questions = [identifier for identifier in before[0].tasks if identifier in everywhere]
    if not questions:
        raise UserError(f"{before[0].name} and {after[0].name} share no question: they were played on different data")
    first = before[0].tasks
    for outcomes in (*before, *after):
        for identifier in questions:
            theirs, ours = outcomes.tasks[identifier], first[identifier]
            if (theirs.question, theirs.golden_answers) != (ours.question, ours.golden_answers):
                raise UserError(
                    f"question {identifier} is not the same in {before[0].name} and {outcomes.name}: they were played "
                    "on different data"
                )
    left_out = [len(set.union(*(set(outcomes.tasks) for outcomes in side)) - everywhere) for side in (before, after)]
    return questions, left_out[0], left_out[1]


def _means(side: Sequence[Outcomes], score: str, questions: Sequence[str]) -> list[float]:
    """The mean over seeds of each question's mean over samples."""
    return [fmean(values) for values in zip(*(outcomes.means(score, questions) for outcomes in side), strict=True)]


def _difference(before: Sequence[float], after: Sequence[float]) -> Difference:
    return Difference(fmean(before), fmean(after), paired_bootstrap(before, after, seed=_RESAMPLING_SEED))


def _pick(column: Sequence[float], questions: Sequence[str], members: set[str]) -> list[float]:
    return [value for value, identifier in zip(column, questions, strict=True) if identifier in members]


def _macro(
    columns: tuple[Sequence[float], Sequence[float]], questions: Sequence[str], sets: Mapping[str, set[str]]
) -> Difference:
    """The mean over sets: a question weighs the less, the more questions its set has."""
    of = {identifier: len(sets) * len(members) for members in sets.values() for identifier in members}
    weights = [len(questions) / of[identifier] for identifier in questions]
    return _difference(*([value * weight for value, weight in zip(c, weights, strict=True)] for c in columns))


def _mcnemar(
    before: Sequence[Outcomes], after: Sequence[Outcomes], questions: Sequence[str]
) -> tuple[int, int, float] | None:
    if len(before) > 1 or len(after) > 1 or _samples((*before, *after), questions) != {1}:
        return None
    return mcnemar(*([value == 1 for value in side[0].means("em", questions)] for side in (before, after)))


def _samples(side: Sequence[Outcomes], questions: Sequence[str]) -> set[int]:
    return {len(outcomes.samples[identifier]) for outcomes in side for identifier in questions}


def _sampled(
    before: Sequence[Outcomes], after: Sequence[Outcomes], questions: Sequence[str]
) -> dict[str, tuple[float, float]]:
    n = min(_samples((*before, *after), questions))
    ks = sorted({k for k in (2**power for power in range(1, 11)) if k < n} | {n}) if n > 1 else []

    def mean(measure: Measure, side: Sequence[Outcomes], k: int) -> float:
        samples = [outcomes.samples[identifier] for outcomes in side for identifier in questions]
        return fmean(measure([s.answer for s in of_one], [s.scores["em"] for s in of_one], k) for of_one in samples)

    measures: dict[str, Measure] = {
        "pass": lambda answers, scores, k: pass_at_k(scores.count(1), len(scores), k),
        "maj": majority_at_k,
    }
    return {
        f"{name}@{k}": (mean(measure, before, k), mean(measure, after, k))
        for name, measure in measures.items()
        for k in ks
    }


# -- the command --


def main(arguments: Sequence[str]) -> int:
    """Read both sides, compare them, and print what was found."""
    from search_agent.console.screen import say, screen

    before, after, out = read_arguments(arguments)
    comparison = compare(before, after)
    console = screen()
    say(console, *facts(before, after, comparison))
    console.print(table(comparison))
    if out is not None:
        write_atomically(out, json.dumps(asdict(comparison), indent=1) + "\n")
        say(console, f"record: {out}")
    return 0


def read_arguments(arguments: Sequence[str]) -> tuple[list[Outcomes], list[Outcomes], Path | None]:
    """Both sides and where to write. Raises UserError on anything that is not understood."""
    sides, options = words_and_options(arguments, ("stage", "out"), USAGE)
    if not 1 <= len(sides) <= 2:
        raise UserError(f"name one run or two; {USAGE}")
    stage, out = options.get("stage"), Path(options["out"]) if "out" in options else None
    if len(sides) == 2:
        named = [[Path(run) for run in side.split(",")] for side in sides]
        for runs in named:
            if len({run.resolve() for run in runs}) < len(runs):
                raise UserError(f"{','.join(map(str, runs))}: a run is named twice on one side: seeds are runs apart")
        first, second = ([read_outcomes(run, stage) for run in runs] for runs in named)
        return first, second, out
    run = Path(sides[0])
    after = stage or "test-after-greedy"
    earlier = after.replace("after", "before")
    if not run.is_dir() or not {after, earlier} <= set(stages_of(run)) or after == earlier:
        raise UserError(f"{run}: it has no evaluation before and after training: name a second run; {USAGE}")
    return [read_outcomes(run, earlier)], [read_outcomes(run, after)], out


def facts(before: Sequence[Outcomes], after: Sequence[Outcomes], found: Comparison) -> list[str]:
    """What was compared, and everything that a table of scores does not say."""
    sides = [" + ".join(f"{outcomes.name} {outcomes.stage}" for outcomes in side) for side in (before, after)]
    lines = [f"before: {sides[0]}", f"after:  {sides[1]}", f"{found.questions} questions in both"]
    if found.only_before or found.only_after:
        lines.append(f"left out: {found.only_before} questions of before alone, {found.only_after} of after alone")
    if found.failed_before or found.failed_after:
        lines.append(
            f"ended by infrastructure, counted as wrong: {found.failed_before} episodes before, "
            f"{found.failed_after} after"
        )
    if found.mcnemar:
        lost, won, p = found.mcnemar
        lines.append(f"exact match: {won} questions won, {lost} lost; McNemar's exact test p = {p:.3g}")
    lines += [f"exact match over seeds, {side}: {interval}" for side, interval in found.seeds.items()]
    return lines


def table(found: Comparison) -> Table:
    """One row a score."""
    from rich.table import Table

    result = Table(title="difference: after - before, paired bootstrap over questions, 95 %")
    result.add_column("")
    for column in ("before", "after", "difference"):
        result.add_column(column, justify="right", no_wrap=True)
    named = {"em": "exact match", "f1": "F1", "acc": "cover match"}
    rows = [(named.get(name, name), row) for name, row in found.scores.items()]
    rows += [(f"  exact match, {name}", row) for name, row in found.by_set.items()]
    for name, row in rows:
        interval = row.difference
        bounds = f"{interval.estimate:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"
        result.add_row(name, f"{row.before:.3f}", f"{row.after:.3f}", bounds)
    for name, (was, now) in found.sampled.items():
        result.add_row(name, f"{was:.3f}", f"{now:.3f}", f"{now - was:+.3f}")
    return result


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:], help_of="compare"))
