"""Our rollout worker against plain vLLM's ``LLM.generate``: the same model, prompts, lengths and engine settings.

Episodes of one turn, so that plain vLLM can do them at all: what is compared is the worker's own work (episodes, engine
thread, text and stop strings, per-request seeds, log-probs, reward). Ours plays first; turns end by chance, and plain
vLLM is asked for as many tokens. Both begin with the same other prompts, untimed, and with an empty prefix cache each
time. Medians of a few times; about two and a half minutes.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.engine.plain import ASKED
from bench.harness import ROOT, Figure, main
from bench.rollout import model as policy
from bench.rollout import workload
from verl.config.build import Plugin
from verl.rollout.engine_config import EngineConfig

if TYPE_CHECKING:
    from verl.trajectory import Trajectory

REACH = 0.9
SIZES = {"quick start's size": (2, 128, 32), "larger": (8, 512, 6)}
"""Layers, width and groups (of ``workload.GROUP`` samples), on a CPU."""


def measure(quick: bool) -> Iterator[Figure]:
    """On a CPU, one thread each; ``quick``: the small model and a few episodes, recorded only."""
    for name, (layers, width, groups) in list(SIZES.items())[: 1 if quick else None]:
        with tempfile.TemporaryDirectory() as folder:
            written = policy.write(Path(folder) / "model", layers, width)
            config = workload.engine_config(prefix_caching=True)
            yield from compare(
                written, config, name, groups=2 if quick else groups, repeats=1 if quick else 3, judged=not quick
            )


def compare(
    model: Path,
    config: EngineConfig,
    name: str,
    *,
    groups: int,
    judged: bool,
    repeats: int,
    stop: str = "",
    tokens: int = 256,
) -> Iterator[Figure]:
    """Each arm in a process of its own; ours in two where it repeats, around the other, so that drift meets both.

    ``stop`` ends a turn (by default what ``bench.rollout.model`` has for it), and so do ``tokens``.
    """
    settings = json.dumps(dataclasses.asdict(config))
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder) / "work.json"
        arguments = (str(model), settings, str(groups), stop, str(tokens), str(work), str(repeats))
        ours = [_process("bench.rollout.ceiling", "child", *arguments)["seconds"]]
        plain = _process("bench.engine.plain", "generate", str(model), settings, str(work), str(repeats))
        if repeats > 1:
            ours.append(_process("bench.rollout.ceiling", "child", *arguments)["seconds"])
        generated = sum(length for _, length in json.loads(work.read_text())["timed"])
    yield from figures(name, generated, statistics.mean(ours), plain, judged=judged)


def figures(name: str, generated: int, ours_s: float, plain_s: dict[str, float], *, judged: bool) -> Iterator[Figure]:
    """Seconds of ours and of plain vLLM by what it was asked for; judged where it gives the log-probs too."""
    for asked in ASKED:
        share = plain_s[asked] / ours_s
        figure = Figure.at_least(f"{name}: worker / plain vLLM {asked}", share, "x", REACH)
        yield figure.judged(judged and asked == ASKED[0])
    yield Figure(f"{name}: worker", generated / ours_s, "tokens/s")
    yield Figure(f"{name}: plain vLLM {ASKED[0]}", generated / plain_s[ASKED[0]], "tokens/s")


def _process(module: str, function: str, *arguments: str) -> Any:
    """The last line of ``module.function(*arguments)`` in a fresh process, as JSON."""
    code = f"import sys; from {module} import {function} as run; run(*sys.argv[1:])"
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{module} ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def child(model: str, settings: str, groups: str, stop: str, tokens: str, work: str, repeats: str) -> None:
    """The process of our arm; writes what plain vLLM has to do, and its last line is how long ours took."""
    config = EngineConfig(**json.loads(settings))
    seconds, done = asyncio.run(_play(Path(model), config, int(groups), stop, int(tokens), int(repeats)))
    Path(work).write_text(json.dumps(done))
    print(json.dumps({"seconds": statistics.median(seconds)}))


async def _play(
    model: Path, config: EngineConfig, groups: int, stop: str, tokens: int, repeats: int
) -> tuple[list[float], dict[str, Any]]:
    """How long ours took each time, and what was asked for, untimed and timed."""
    from verl.rollout.worker import RolloutWorker

    worker = RolloutWorker(str(model), config, _agent(model, config, stop, tokens), run_seed=0)
    await worker.open()
    warm = await worker.run_groups(workload.requests(1, first=groups))
    engine, seconds = worker._engine, []
    for _ in range(repeats):
        await engine._thread.call(lambda: engine._vllm.commit_version(0))  # empties the prefix cache
        began = time.perf_counter()
        timed = await worker.run_groups(workload.requests(groups))
        seconds.append(time.perf_counter() - began)
    await worker.close()
    return seconds, {
        name: requests_of([trajectory for group in groups for trajectory in group.trajectories])
        for name, groups in (("warm", warm), ("timed", timed))
    }


def requests_of(trajectories: Sequence[Trajectory]) -> list[tuple[list[int], int]]:
    """Prompt ids and generated tokens of episodes of one turn."""
    found = []
    for trajectory in trajectories:
        prompt, turn = trajectory.segments
        assert (prompt.kind, turn.kind) == ("prompt", "generated")
        found.append(([int(token) for token in prompt.token_ids], len(turn)))
    return found


def _agent(model: Path, config: EngineConfig, stop: str, tokens: int) -> Any:
    """The search agent with one turn and no search in it."""
    spec = workload.agent_spec(model, "http://127.0.0.1:1")
    one_turn = dataclasses.replace(
        spec.environment.config, max_turns=0, max_tokens_per_turn=tokens, max_prompt_tokens=1024
    )
    protocol = dataclasses.replace(spec.protocol.config, stop=stop or spec.protocol.config.stop)
    return dataclasses.replace(
        spec,
        protocol=Plugin(spec.protocol.module, protocol),
        environment=Plugin(spec.environment.module, one_turn),
        max_context_tokens=config.max_context_tokens,
    )


if __name__ == "__main__":
    main(measure)
