"""The discrete-event model against one and two real engines, and what it says of 8, 64 and 512.

Rates are measured on one engine, and on two that step at the same time on the same machine. The model is given these
and the episodes that were played (tokens and search times of each turn), and has to give the share of time in which one
engine, and each of two, was seen to step. The picture is drawn with the rates of one, drawn episodes, and a learner as
fast as the engines of half the fleet.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.harness import ROOT, Figure, main
from bench.rollout import model
from bench.rollout.arm import Played, run
from bench.rollout.latency import latency_s
from bench.rollout.retriever import serving
from bench.scale import calibrate
from bench.scale.load import Group, Load, draw, played
from bench.scale.simulate import Fleet, Outcome, Rates, simulate
from search_agent.console.screen import new_picture, save_picture
from search_agent.planning.prediction import forward_flops
from search_agent.planning.rates import rates_of, read_rates
from verl.learner.holdings import BYTES
from verl.model_shape import read_shape
from verl.trajectory import Trajectory

GROUPS, MEDIAN_S = 12, 0.3
TOLERANCE = 0.10
GPUS = (8, 64, 512)
STEPS = 4
PICTURE = ROOT / "docs" / "results" / "scale.png"
CARD, MODEL = "H200", "Qwen/Qwen2.5-1.5B"
"""Of the picture: whose rates, and which model."""


def measure(quick: bool) -> Iterator[Figure]:
    """Calibrate, play with one engine and with two, compare, draw; ``quick``: one engine, and no picture."""
    with tempfile.TemporaryDirectory() as folder:
        policy = model.write(Path(folder))
        if quick:
            yield from at_once(policy)
            return
        rates = calibrate.measure(policy)
        yield Figure("engine step", rates.step_s * 1e3, "ms")
        yield Figure("more for each request in it", rates.request_s * 1e3, "ms")
        yield Figure("more for each token read", rates.prefill_s * 1e6, "us")
        for engines in (1, 2):
            with serving(MEDIAN_S) as url:
                seen, work = play(policy, url, engines, GROUPS)
            own = rates if engines == 1 else calibrate.measure(policy, engines)
            yield from compare(seen, work, own, judged=True)
    yield from draw_picture()


def at_once(policy: Path) -> Iterator[Figure]:
    """Calibrate on one core while one group is played on the other: good for an answer within a minute, no more."""
    with ThreadPoolExecutor() as pool, serving(MEDIAN_S) as url:
        rates = pool.submit(calibrate.measure, policy, first_core=1)
        seen, work = play(policy, url, 1, 1)
        yield from compare(seen, work, rates.result(), judged=False)


def play(policy: Path, url: str, engines: int, groups: int) -> tuple[list[Played], list[Group]]:
    """``groups`` groups shared by engines at the same time, each pinned to a core; and what they were."""
    share = groups // engines
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(engines) as pool:
        files = [Path(folder) / f"{core}.jsonl" for core in range(engines)]
        jobs = [
            pool.submit(run, "ours", policy, url, 1, share, core=core, first=core * share, episodes=file)
            for core, file in enumerate(files)
        ]
        seen = [job.result() for job in jobs]
        by_engine = [_groups(file) for file in files]
    # The model deals groups out in turn, as a pool does.
    return seen, [group for together in zip(*by_engine, strict=True) for group in together]


def _groups(file: Path) -> list[Group]:
    trajectories = [Trajectory.from_record(json.loads(line)) for line in file.read_text().splitlines()]
    return played(trajectories, lambda call: latency_s(call.request, MEDIAN_S))


def compare(seen: Sequence[Played], work: Sequence[Group], rates: Rates, *, judged: bool) -> Iterator[Figure]:
    """The busy share of the engines, seen and modelled with the same episodes; drawn ones show how much is luck."""
    engines = len(seen)
    model = simulate(rates, work, Fleet(engines))
    seconds = max(one.seconds for one in seen)
    busy = sum(one.engine_busy_s for one in seen) / engines / seconds
    read = sum(turn.read_tokens for group in work for episode in group for turn in episode)
    label = f"{engines} engine{'s' * (engines > 1)}"
    yield Figure(f"{label}: busy, seen", busy, "share")
    yield Figure(f"{label}: busy, modelled", model.engine_busy, "share")
    yield Figure(f"{label}: seconds, modelled / seen", model.seconds / seconds, "x")
    yield Figure(f"{label}: tokens read, modelled / seen", read / sum(one.prefilled_tokens for one in seen), "x")
    drawn = sorted(simulate(rates, draw(Load(len(work)), 1, seed), Fleet(engines)).engine_busy for seed in range(20))
    yield Figure(f"{label}: busy, modelled, least of 20 drawn batches", drawn[0], "share")
    yield Figure(f"{label}: busy, modelled, most of 20 drawn batches", drawn[-1], "share")
    off = abs(model.engine_busy / busy - 1)
    name = f"{label}: busy, modelled against seen, off by"
    yield Figure.at_most(name, off, "share", TOLERANCE).judged(judged)


def of_card(card: str, name: str, load: Load) -> Rates:
    """The stations' seconds on one card, from the table of rates, for a model and episodes of the mean length.

    What was not measured on the card (reading, on the H200) takes none.
    """
    row, shape = rates_of(card, read_rates()), read_shape(name)
    assert row is not None
    assert row.step_s is not None
    assert row.learn_tflops is not None
    written = load.turns * load.turn_tokens
    tokens = load.prompt_tokens + (load.turns - 1) * load.observation_tokens + written
    scale, passes = (
        shape.parameters / row.parameters,
        3,
    )  # forward and twice backward: the presets recompute nothing here
    learn_s = passes * forward_flops(shape, tokens, written) / (row.learn_tflops * 1e12)
    sync_s = row.push_s + shape.parameters * BYTES["bfloat16"] / 2**30 / max(row.sync_gib_per_s.values())
    slower = row.slower(scale)
    return Rates(slower * row.step_s, slower * row.request_s, scale * row.read_s, learn_s, row.turn_s, sync_s)


def fleets() -> dict[str, list[Outcome]]:
    """By label, the outcomes at each size: half the GPUs roll out and half learn, 8 groups a GPU of rollout or 64."""
    at = of_card(CARD, MODEL, Load(1))

    def outcome(gpus: int, groups: int, max_staleness: int) -> Outcome:
        return simulate(at, draw(Load(groups), STEPS), Fleet(gpus // 2, gpus // 2, max_staleness=max_staleness), STEPS)

    result = {}
    for staleness in (0, 2):
        result[f"batch grows, staleness {staleness}"] = [outcome(n, 4 * n, staleness) for n in GPUS]
        result[f"batch of 64 groups, staleness {staleness}"] = [outcome(n, 64, staleness) for n in GPUS]
    return result


def draw_picture() -> Iterator[Figure]:
    """The picture, and its numbers."""
    figure, (left, right) = new_picture(1, ncols=2, figsize=(10, 4))
    for label, outcomes in fleets().items():
        left.plot(GPUS, [outcome.episodes_per_s for outcome in outcomes], marker="o", label=label)
        right.plot(GPUS, [outcome.engine_busy for outcome in outcomes], marker="o", label=label)
        for gpus, outcome in zip(GPUS, outcomes, strict=True):
            yield Figure(f"{gpus} GPUs, {label}: engines busy", outcome.engine_busy, "share")
            yield Figure(f"{gpus} GPUs, {label}: throughput", outcome.episodes_per_s, "episodes/s")
    for axes, title in ((left, "episodes a second"), (right, "engines busy")):
        axes.set(xscale="log", xlabel="GPUs", title=title)
        axes.set_xticks(GPUS, [str(n) for n in GPUS])
    left.set_yscale("log")
    save_picture(figure, (left, right), PICTURE)


if __name__ == "__main__":
    main(measure)
