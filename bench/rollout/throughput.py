"""Rollout against lock-step rollout: the same engine, model, questions, seeds and retriever; only who waits for whom.

Arm A is the lock-step of Search-R1 and AutoRefine as published, without a prefix cache; arm B is the same with one.
Ours is the real rollout worker behind the group buffer: on-policy (a batch is complete before the next begins), and
with a staleness bound of 2, where it begins earlier. The learner takes no time in any arm.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from bench.harness import Figure, main
from bench.rollout import model
from bench.rollout.arm import ArmName, Played, run, together
from bench.rollout.retriever import serving

REACH = {0.05: 2.0, 0.3: 3.0}
"""Median latency of a search (s), and what throughput is to reach against A."""
GROUPS, AHEAD_BATCHES = 12, 3
"""Groups of a batch; batches that ours plays with staleness, the first of them the other arms' one."""
PREFILL_REACH = 1 / 3


def measure(quick: bool) -> Iterator[Figure]:
    """Every arm in processes of its own, one after the other. ``quick``: one group, recorded only."""
    groups = 1 if quick else GROUPS
    with tempfile.TemporaryDirectory() as folder:
        policy = model.write(Path(folder))
        for median_s in [0.05] if quick else REACH:
            runs: dict[ArmName, list[Played]] = {}
            for name in _arms(quick, median_s):
                with serving(median_s) as url:
                    played = run(name, policy, url, AHEAD_BATCHES if name == "ours_ahead" else 1, groups)
                runs.setdefault(name, []).append(played)
                print(f"{median_s:g} s, {name}: {played}", flush=True)
            yield from figures({name: together(own) for name, own in runs.items()}, median_s, judged=not quick)


def _arms(quick: bool, median_s: float) -> tuple[ArmName, ...]:
    """In the order in which they are played; the two that are compared are played twice, so that drift meets both."""
    if quick:
        return "lockstep", "ours"
    ahead: tuple[ArmName, ...] = ("ours_ahead",) if median_s == max(REACH) else ()
    return "lockstep", "lockstep_cached", "ours", *ahead, "ours", "lockstep"


def figures(arms: Mapping[ArmName, Played], median_s: float, *, judged: bool) -> Iterator[Figure]:
    """Ours against A, with everything else beside it; ``judged`` gives the two claims their reach."""
    at = f"{median_s * 1000:g} ms"
    a, ours = arms["lockstep"], arms["ours"]
    name, ratio = f"throughput, ours / A, {at}", ours.episodes_per_s / a.episodes_per_s
    yield Figure.at_least(name, ratio, "x", REACH[median_s]).judged(judged)
    for label, other in (("B", arms.get("lockstep_cached")), ("ours with staleness 2", arms.get("ours_ahead"))):
        if other is not None:
            yield Figure(f"throughput, {label} / A, {at}", other.episodes_per_s / a.episodes_per_s, "x")
    name, ratio = f"tokens prefilled, ours / A, {at}", ours.prefilled_tokens / a.prefilled_tokens
    yield Figure.at_most(name, ratio, "x", PREFILL_REACH).judged(judged)
    # The same seeds draw the same tokens, but for the few that rounding in another batch tips over.
    yield Figure.at_most(f"tokens generated, ours / A, off 1, {at}", _off_one(ours, a), "share", 0.02)
    for label, arm in arms.items():
        yield Figure(f"{label}, {at}", arm.episodes_per_s, "episodes/s")
        yield Figure(f"{label}, engine busy, {at}", arm.engine_busy_s / arm.seconds, "share")


def _off_one(ours: Played, other: Played) -> float:
    return abs(ours.generated_tokens / other.generated_tokens - 1)


if __name__ == "__main__":
    main(measure)
