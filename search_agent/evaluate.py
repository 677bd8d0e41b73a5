"""``bash cmd/eval.sh``: score a model on its test split, with intervals."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_agent.config import RunConfig
from search_agent.console.command import load_config, results_config, run_command
from verl.config.build import build
from verl.config.compose import compose, config_hash, from_yaml, last_value, to_yaml
from verl.durable import write_atomically
from verl.errors import UserError, refuse

if TYPE_CHECKING:
    from verl.trainer.run_folder import RunFolder

RUNS = Path("runs")


def main(arguments: Sequence[str]) -> int:
    """Evaluate ``model=`` (a run folder, a Hugging Face folder or a hub name), by default the newest finished run; or
    what ``endpoint=`` serves, of which ``model=`` names the tokenizer."""
    from search_agent.console.report import evaluation_table, warning_lines
    from search_agent.console.screen import say, screen
    from search_agent.evaluation.choices import chosen
    from search_agent.evaluation.journal import alone
    from search_agent.evaluation.judge import judge_stage, split_judge
    from search_agent.evaluation.playing import evaluate_served
    from search_agent.evaluation.served import split_endpoint
    from search_agent.manifests import address_faults
    from search_agent.planning.model_folder import model_faults
    from search_agent.planning.preflight import build_faults
    from verl.cluster.capacity import engine_needs_gpus
    from verl.cluster.guardian import start_guardian
    from verl.cluster.ray_runtime import path_faults
    from verl.trainer.run_folder import RunFolder

    judge, others = split_judge(chosen(arguments))
    served, others = split_endpoint(others)
    named = last_value(others, "model") is not None
    config = evaluated_config(others if named or served is None else [*others, f"model={served.endpoint_model}"])
    faults = address_faults(config)
    if not served:
        faults += model_faults(config) + path_faults(config.cluster)
        faults += build_faults(config.cluster, engine_needs_gpus()) if config.cluster.address == "local" else []
    refuse(faults)
    results = results_config(config)
    default = RUNS / f"eval-{config.name}-{config_hash({**results, **(served.played if served else {})})}"
    folder = RunFolder(writable_folder(Path(config.run_dir or default)))
    folder.logs.mkdir(exist_ok=True)
    folder.trajectories.mkdir(exist_ok=True)
    with alone(folder.path):
        keep_config(folder, config)
        if served:
            result = asyncio.run(evaluate_served(config, served, folder, results))
        else:
            with closing(start_guardian(folder.path)) as guardian:
                result = asyncio.run(evaluate(config, folder, guardian.scratch, results))
        model = served.endpoint_model if served else config.model
        folder.write_json("evaluation.json", {"model": model, **(served.played if served else {}), **result})
        if judge is not None:
            for name, found in result.items():
                judged = judge_stage(folder.path, f"eval-{name}", judge)
                found |= judged.numbers()
                found["warnings"] += judged.doubts()
            folder.write_json("evaluation.json", {"model": model, **(served.played if served else {}), **result})
    console = screen()
    episodes = " and ".join(f"{found['n']} {name}" for name, found in result.items())
    console.print(evaluation_table(f"{model}, {episodes} episodes", {"": result}))
    say(console, *warning_lines({"": result}))
    say(console, f"record: {folder.path / 'evaluation.json'}; episodes: {folder.trajectories}")
    return 0


def evaluated_config(arguments: Sequence[str]) -> RunConfig:
    """The configuration to evaluate under: a run's own where the model is a run, else the recipe's, with overrides."""
    others = _only_test([argument for argument in arguments if not argument.startswith("model=")])
    model = last_value(arguments, "model") or str(newest_run())
    run = Path(model)
    if not (run / "config.yaml").exists():
        return replace(load_config(others), model=model)
    best = run / "best_dev"
    if not best.exists():
        raise UserError(f"model={model}: the run has no checkpoint that was chosen on dev yet")
    return replace(run_config(run / "config.yaml", others), model=str(best))


def keep_config(folder: RunFolder, config: RunConfig) -> None:
    """Say in the folder what is played there, for whoever reads its episodes; a training run's own word stays."""
    if not folder.is_run:
        write_atomically(folder.config, to_yaml(results_config(config)))


def writable_folder(path: Path) -> Path:
    """``path`` as a folder that can be written into. Raises UserError that says how to name another one."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as error:
        raise UserError(
            f"{path} cannot be written to ({error.strerror}): write run_dir= with another folder"
        ) from error


def _only_test(overrides: list[str]) -> list[str]:
    """``data=files data.test=FILE`` is enough here: training and dev files are not read."""
    given = {key: value for key, _, value in (override.partition("=") for override in overrides)}
    if given.get("data") == "files" and "data.test" in given:
        others = [key for key in ("data.train", "data.dev") if key not in given]
        return [*overrides, *(f"{key}={given['data.test']}" for key in others)]
    return overrides


def newest_run() -> Path:
    """The run that finished last. Raises UserError if none has."""
    finished = sorted(RUNS.glob("*/summary.json"), key=lambda path: path.stat().st_mtime)
    if not finished:
        raise UserError(f"there is no finished run in {RUNS}/: train one with bash cmd/train.sh, or write model=FOLDER")
    return finished[-1].parent


def run_config(path: Path, overrides: Sequence[str]) -> RunConfig:
    """What a run's ``config.yaml`` says, with overrides. Raises UserError; a fault of the file names the file."""
    try:
        return build(RunConfig, compose(from_yaml(path), overrides))
    except UserError as error:
        keys = tuple(override.lstrip("+").partition("=")[0] for override in overrides)
        lines = str(error).splitlines()
        raise UserError("\n".join(line if line.startswith(keys) else f"{path}: {line}" for line in lines)) from error


async def evaluate(config: RunConfig, folder: RunFolder, scratch: Path, results: dict[str, Any]) -> dict[str, Any]:
    """Play what is not yet in the folder's journal; what came out by decoding, as in a run's summary.

    ``results`` are the keys that decide what is computed, besides the model's files.
    """
    from search_agent.data.inputs import find_source, model_path
    from search_agent.evaluation.journal import Journal, stamp
    from search_agent.evaluation.playing import conclude, keep, play_on_workers, still_open
    from search_agent.launch import processes
    from search_agent.manifests import check_retriever
    from search_agent.planning.lengths import check_lengths

    source = await asyncio.to_thread(find_source, config)
    tasks, model = source.test.load()[: config.evaluation.test_tasks], model_path(config, source)
    check_lengths({"test": tasks}, config, model)
    await check_retriever(config, folder)
    journal = Journal(folder.path, {**results, "files": stamp(model)}, fresh=config.fresh)
    done, open_ = still_open(config, tasks, journal)
    if open_:
        only_test = replace(source, train=source.test, dev=source.test)
        async with processes(config, only_test, model, folder.logs, scratch, learn=False, probes=list) as live:
            await live.watch(keep(play_on_workers(live.pool, open_, fixed=config.deterministic), done, journal))
    return conclude(config, tasks, done, folder)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:], help_of="eval"))
