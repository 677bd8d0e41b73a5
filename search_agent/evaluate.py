"""``bash cmd/eval.sh``: score a model on its test split, greedy and sampled, with intervals."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from search_agent.command import load_config, run_command
from search_agent.config import RunConfig
from verl.config.build import build, to_dict
from verl.config.compose import config_hash
from verl.errors import UserError

RUNS = Path("runs")


def main(arguments: Sequence[str]) -> int:
    """Evaluate ``model=`` (a run folder, a Hugging Face folder or a hub name), by default the newest finished run."""
    from search_agent.preflight import model_faults
    from search_agent.report import evaluation_table
    from search_agent.screen import say, screen
    from verl.cluster.guardian import start_guardian
    from verl.trainer.run_folder import RunFolder

    config = evaluated_config(arguments)
    if faults := model_faults(config):
        raise UserError("\n".join(faults))
    folder = RunFolder(RUNS / f"eval-{config.name}-{config_hash(to_dict(config))}")
    folder.logs.mkdir(parents=True, exist_ok=True)
    folder.trajectories.mkdir(exist_ok=True)
    guardian = start_guardian(folder.path)
    try:
        result = asyncio.run(evaluate(config, folder, guardian.scratch))
    finally:
        guardian.close()
    folder.write_json("evaluation.json", {"model": config.model, **result})
    console = screen()
    console.print(evaluation_table(f"{config.model}, {result['greedy']['n']} questions", {"": result}))
    say(console, f"record: {folder.path / 'evaluation.json'}; episodes: {folder.trajectories}")
    return 0


def evaluated_config(arguments: Sequence[str]) -> RunConfig:
    """The configuration to evaluate under: a run's own where the model is a run, else the recipe's, with overrides."""
    named = [argument.partition("=")[2] for argument in arguments if argument.startswith("model=")]
    others = _only_test([argument for argument in arguments if not argument.startswith("model=")])
    model = named[-1] if named else str(newest_run())
    run = Path(model)
    if not (run / "config.yaml").exists():
        return replace(load_config(others), model=model)
    best = run / "best_dev"
    if not best.exists():
        raise UserError(f"model={model}: the run has no checkpoint that was chosen on dev yet")
    return replace(run_config(run / "config.yaml", others), model=str(best))


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
        return build(RunConfig, override_run(path, overrides))
    except UserError as error:
        keys = tuple(override.lstrip("+").partition("=")[0] for override in overrides)
        lines = str(error).splitlines()
        raise UserError("\n".join(line if line.startswith(keys) else f"{path}: {line}" for line in lines)) from error


def override_run(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """A run's ``config.yaml`` with overrides: values by dotted key, whole groups (``data=files``) from ``configs``."""
    from omegaconf import OmegaConf

    from verl.config.compose import CONFIG_DIR, parse

    parse(overrides)
    config = OmegaConf.load(path)
    for override in overrides:
        key, _, value = override.lstrip("+").partition("=")
        preset = CONFIG_DIR / key / f"{value}.yaml"
        if preset.exists():
            OmegaConf.update(config, key, OmegaConf.load(preset), merge=False)
        else:
            config = OmegaConf.merge(config, OmegaConf.from_dotlist([f"{key}={value}"]))
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


async def evaluate(config: RunConfig, folder: Any, scratch: Path) -> dict[str, Any]:
    """Play the test split greedily and sampled; ``{"greedy": ..., "sampled": ...}`` as in a run's summary."""
    from search_agent.evaluation.describe import describe
    from search_agent.inputs import find_source, model_path
    from search_agent.launch import processes
    from search_agent.lengths import check_lengths
    from search_agent.preflight import check_retriever
    from search_agent.source import Source
    from verl.trainer.evaluator import Evaluator

    source = await asyncio.to_thread(find_source, config)
    tasks, model = source.test.load()[: config.evaluation.test_tasks], model_path(config, source)
    check_lengths({"test": tasks}, config, model)
    await check_retriever(config, folder)
    only_test = Source(source.test, source.test, source.test, source.model)
    async with processes(config, only_test, model, folder.logs, scratch, learn=False, probes=list) as live:
        measuring = Evaluator(live.pool, describe).measure(tasks, "test", "eval", 0, keep_in=folder)
        return await live.watch(measuring)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:], help_of="eval"))
