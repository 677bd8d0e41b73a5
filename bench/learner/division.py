"""One optimizer step, however divided (ranks, micro-batches, packs, sequence slices); saved, resharded, gone on with.

Every rank is a process of its own (``python -m verl.learner``). All sequences are longer than half of the smallest cap:
under it each is a micro-batch alone, which is packing switched off.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bench.harness import ROOT, Figure, main
from bench.learner.sizes import VOCABULARY, write_model
from verl.cluster.processes import free_port
from verl.trajectory import Trajectory

SHORTEST, LONGEST, SEQUENCES = 65, 128, 24
ALONE, ALL = LONGEST, LONGEST * SEQUENCES
Step = dict[str, float]

# Ranks, cap on the tokens of a micro-batch, ranks that share a sequence.
REFERENCE = (1, ALL, 1)
DIVISIONS = ((1, ALONE, 1), (1, 3 * LONGEST, 1), (2, 3 * LONGEST, 1), (4, ALONE, 1), (2, ALL, 2), (4, 3 * LONGEST, 2))
TOLERANCES = {"float64": 1e-9, "float32": 1e-5}


def measure(quick: bool) -> Iterator[Figure]:
    """Relative differences of loss and gradient norm: exact properties, no timing."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, data = write_model(folder / "model"), write_trajectories(folder / "trajectories.jsonl")
        for dtype, tolerance in list(TOLERANCES.items())[: 1 if quick else None]:
            expected = step(model, data, dtype, REFERENCE)
            worst = {"loss": 0.0, "grad_norm": 0.0}
            for division in DIVISIONS[2:3] if quick else DIVISIONS:
                ours = step(model, data, dtype, division)
                worst = {key: max(value, relative(ours[key], expected[key])) for key, value in worst.items()}
            for key, value in worst.items():
                yield Figure.at_most(f"{dtype}: {key}, largest difference over divisions", value, "relative", tolerance)
        yield from resharding(model, data, folder / "saved", (1,) if quick else (1, 2, 4))


def resharding(model: Path, data: Path, saved: Path, loads: tuple[int, ...]) -> Iterator[Figure]:
    """Two ranks take a step, save, and take another; so do others from what was saved."""
    arguments = ("optimizer.learning_rate=1e-3",)
    straight = run(2, model, data, *arguments, "--steps", "2")[1]
    run(2, model, data, *arguments, "--steps", "1", "--save", str(saved))
    for ranks in loads:
        loaded = run(ranks, model, data, *arguments, "--load", str(saved))[0]
        bound = 0.0 if ranks == 2 else 1e-5
        difference = relative(loaded["loss"], straight["loss"])
        yield Figure.at_most(f"saved by 2 ranks, loaded by {ranks}: next loss", difference, "relative", bound)


def step(model: Path, data: Path, dtype: str, division: tuple[int, int, int]) -> Step:
    """The first step's numbers, divided so."""
    ranks, cap, sequence_ranks = division
    return run(
        ranks,
        model,
        data,
        f"learner.parameter_dtype={dtype}",
        f"learner.compute_dtype={dtype}",
        f"learner.max_tokens_per_microbatch={cap}",
        f"learner.sequence_ranks={sequence_ranks}",
    )[0]


def run(ranks: int, model: Path, data: Path, *arguments: str) -> list[Step]:
    """What rank 0 prints, one dict an update. The loss is REINFORCE's: PPO's is near 0 before the first step."""
    shared = {
        "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "verl.learner", str(model), str(data), "loss.name=reinforce", *arguments]
    processes = [
        subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **shared, "RANK": str(rank)}, stdout=subprocess.PIPE, text=True
        )
        for rank in range(ranks)
    ]
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit(f"{' '.join(command)} failed on {ranks} ranks")
    return [json.loads(line) for line in outputs[0].splitlines() if line.startswith("{")]


def relative(ours: float, theirs: float) -> float:
    """Difference over the size of the expected."""
    return abs(ours - theirs) / abs(theirs)


def write_trajectories(path: Path) -> Path:
    """Groups of four with random tokens and rewards: a prompt, then generated and observed tokens in turn."""
    rng = np.random.default_rng(0)
    with path.open("w") as file:
        for number in range(SEQUENCES):
            trajectory = Trajectory(f"task-{number // 4}", number % 4, outcome="finished", reward=float(rng.random()))
            trajectory.append_prompt(rng.integers(0, VOCABULARY, 9).tolist(), "")
            length = int(rng.integers(SHORTEST, LONGEST + 1))
            while len(trajectory) < length:
                size = min(int(rng.integers(1, 20)), length - len(trajectory))
                ids = rng.integers(0, VOCABULARY, size).tolist()
                trajectory.append_generated(ids, "", (-rng.random(size)).tolist(), [0] * size, "stop")
                seen = min(int(rng.integers(1, 30)), length - len(trajectory))
                if seen:
                    trajectory.append_observation(rng.integers(0, VOCABULARY, seen).tolist(), "")
            file.write(json.dumps(trajectory.to_record()) + "\n")
    return path


if __name__ == "__main__":
    main(measure)
