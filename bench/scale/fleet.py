"""The discrete-event model against one and two real engines, and what it says of 8, 64 and 512.

Rates are measured on one engine, and on two that step at the same time on the same machine; the model then has to give
the share of time in which one engine, and each of two, was seen to step. The picture is drawn with the rates of one and
a learner as fast as the engines of half the fleet.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from bench.harness import ROOT, Figure, main
from bench.rollout import model
from bench.rollout.arm import Played, run
from bench.rollout.retriever import serving
from bench.scale import calibrate
from bench.scale.simulate import Fleet, Load, Outcome, Rates, simulate

GROUPS, MEDIAN_S = 12, 0.3
TOLERANCE = 0.10
GPUS = (8, 64, 512)
PICTURE = ROOT / "docs" / "results" / "scale.png"
LEARN_S, SYNC_S = 0.15, 0.5
"""The learner's seconds for an episode on one GPU of its half, and what a sync takes: assumed, not measured."""


def measure(quick: bool) -> Iterator[Figure]:
    """Calibrate, play with one engine and with two, compare; ``quick`` leaves out the second and the picture."""
    groups = 2 if quick else GROUPS
    with tempfile.TemporaryDirectory() as folder:
        policy = model.write(Path(folder))
        rates = calibrate.measure(policy)
        yield Figure("engine step", rates.step_s * 1e3, "ms")
        yield Figure("more for each request in it", rates.request_s * 1e3, "ms")
        yield Figure("more for each token read", rates.prefill_s * 1e6, "us")
        for engines in (1,) if quick else (1, 2):
            with serving(MEDIAN_S) as url:
                seen = play(policy, url, engines, groups)
            own = rates if engines == 1 else calibrate.measure(policy, engines)
            yield from compare(seen, expected(own, engines, groups), judged=not quick)
    if not quick:
        yield from draw(rates)


def play(policy: Path, url: str, engines: int, groups: int) -> list[Played]:
    """``groups`` groups shared by engines at the same time, each pinned to a core."""
    with ThreadPoolExecutor(engines) as pool:
        share = groups // engines
        jobs = [pool.submit(run, "ours", policy, url, 1, share, core, core * share) for core in range(engines)]
        return [job.result() for job in jobs]


def expected(rates: Rates, engines: int, groups: int) -> Outcome:
    """The model's mean over a few draws: a batch is short, and its tail is luck."""
    outcomes = [simulate(rates, Load(groups), Fleet(engines), 1, seed) for seed in range(8)]
    count = len(outcomes)
    return replace(
        outcomes[0],
        seconds=sum(outcome.seconds for outcome in outcomes) / count,
        engine_busy=sum(outcome.engine_busy for outcome in outcomes) / count,
    )


def compare(seen: Sequence[Played], model: Outcome, *, judged: bool) -> Iterator[Figure]:
    """The busy share of the engines, seen and modelled."""
    seconds = max(played.seconds for played in seen)
    busy = sum(played.engine_busy_s for played in seen) / len(seen) / seconds
    label = f"{len(seen)} engine{'s' * (len(seen) > 1)}"
    yield Figure(f"{label}: busy, seen", busy, "share")
    yield Figure(f"{label}: busy, modelled", model.engine_busy, "share")
    yield Figure(f"{label}: seconds, modelled / seen", model.seconds / seconds, "x")
    off = abs(model.engine_busy / busy - 1)
    name = f"{label}: busy, modelled against seen, off by"
    yield Figure.at_most(name, off, "share", TOLERANCE).judged(judged)


def fleets(rates: Rates) -> dict[str, list[Outcome]]:
    """By label, the outcomes at each size: half the GPUs roll out and half learn, 8 groups a GPU of rollout or 64."""
    at = replace(rates, learn_s=LEARN_S, sync_s=SYNC_S)
    result = {}
    for staleness in (0, 2):
        scaled = [simulate(at, Load(4 * n), Fleet(n // 2, n // 2, max_staleness=staleness), 4) for n in GPUS]
        fixed = [simulate(at, Load(64), Fleet(n // 2, n // 2, max_staleness=staleness), 4) for n in GPUS]
        result[f"batch grows, staleness {staleness}"] = scaled
        result[f"batch of 64 groups, staleness {staleness}"] = fixed
    return result


def draw(rates: Rates) -> Iterator[Figure]:
    """The picture, and its numbers."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    for label, outcomes in fleets(rates).items():
        left.plot(GPUS, [outcome.episodes_per_s for outcome in outcomes], marker="o", label=label)
        right.plot(GPUS, [outcome.engine_busy for outcome in outcomes], marker="o", label=label)
        for gpus, outcome in zip(GPUS, outcomes, strict=True):
            yield Figure(f"{gpus} GPUs, {label}: engines busy", outcome.engine_busy, "share")
            yield Figure(f"{gpus} GPUs, {label}: throughput", outcome.episodes_per_s, "episodes/s")
    for axes, title in ((left, "episodes a second"), (right, "engines busy")):
        axes.set(xscale="log", xlabel="GPUs", title=title)
        axes.set_xticks(GPUS, [str(n) for n in GPUS])
    left.set_yscale("log")
    left.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(PICTURE, dpi=110)


if __name__ == "__main__":
    main(measure)
