"""The main job over several seeds: each redraws the world, the weights, the warm-up and the reinforcement.

A figure holds if it holds for every seed. ``--quick`` makes one run too short to learn: it shows that the job runs from
end to end, and records its seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bench.harness import Figure, main
from bench.main_job.runs import SHORT, made_runs, new_folder, read_summary, share_finished

SEEDS = "seed=0,1,2,3,4"

# When, how, what, which bound, and the bound: the figures of the quick start.
_HIGH = (
    ("before", "greedy", "format_valid", 0.95),
    ("before", "greedy", "em_one_hop", 0.6),
    ("after", "greedy", "em", 0.95),
    ("after", "greedy", "em_two_hop", 0.90),
    ("after", "sampled", "em", 0.80),
)
_LOW = (("before", "sampled", "em_two_hop", 0.30),)


def measure(quick: bool) -> Iterator[Figure]:
    """Make the runs and, if all have one, compare their summaries with the figures."""
    with made_runs(new_folder("quickstart"), ["seed=0", *SHORT] if quick else [SEEDS]) as members:
        yield share_finished(members)
        if all(member.finished for member in members):
            yield from figures([read_summary(member) for member in members], judged=not quick)


def figures(summaries: list[Any], *, judged: bool) -> Iterator[Figure]:
    """The worst seed of each figure; without ``judged``, recorded only."""
    for when, how, what, bound in _HIGH:
        worst = min(summary[when][how][what] for summary in summaries)
        name = f"{when} {how} {what}, worst seed"
        yield Figure.at_least(name, worst, "share", bound).judged(judged)
    for when, how, what, bound in _LOW:
        worst = max(summary[when][how][what] for summary in summaries)
        name = f"{when} {how} {what}, worst seed"
        yield Figure.at_most(name, worst, "share", bound).judged(judged)
    difference = max(summary["logprob_diff_max"] for summary in summaries)
    yield Figure.at_most("largest trainer-rollout log-prob difference", difference, "nats", 1e-4)
    yield Figure.at_most("aborted episodes", sum(summary["aborted"] for summary in summaries), "episodes", 0)
    seconds = [sum(summary["seconds"].values()) for summary in summaries]
    yield Figure("a run, slowest seed", max(seconds), "s")


if __name__ == "__main__":
    main(measure)
