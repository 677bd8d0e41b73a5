"""``bash cmd/train.sh``: one run from its configuration to its report; the same command resumes it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_agent.config import RunConfig
from search_agent.console.command import load_config, results_config, run_command, run_path
from search_agent.console.machine import on_this_machine
from verl.cluster.processes import end_with_parent
from verl.config.build import to_dict
from verl.config.compose import to_yaml
from verl.errors import refuse

if TYPE_CHECKING:
    from search_agent.data.inputs import Inputs
    from verl.cluster.learners import LearnerGroup
    from verl.trainer.gold import GoldScorer
    from verl.trainer.run_folder import RunFolder

# What the learner and an engine must agree on after each sync, on prompts that every model can read.
_PROBES = ("Question: who", "<think> the", "Question: where was", "<search> a")


def main(arguments: Sequence[str]) -> int:
    """Train, or resume, or print the table of a run that is finished; with ``-m``, a grid of runs."""
    end_with_parent()
    arguments = on_this_machine(arguments)
    if "-m" in arguments:
        from search_agent.grid.run import run_grid

        return run_grid([argument for argument in arguments if argument != "-m"])
    config = load_config(arguments)
    path = run_path(config)
    if config.dry_run:
        return print_plan(config, path)
    from search_agent.console.report import print_report
    from search_agent.planning.preflight import check_start
    from verl.trainer.run_folder import RunFolder

    if config.fresh or not RunFolder(path).finished_as(to_yaml(results_config(config))):
        check_start(config, path)
    folder = open_folder(config, path)
    if folder.read_json("summary.json") is None:
        from search_agent.data.inputs import read_inputs
        from verl.cluster.guardian import start_guardian

        guardian = start_guardian(folder.path)
        try:
            inputs = read_inputs(config)  # a mistake in them is answered before Ray and torch are imported
            summary = asyncio.run(train(config, inputs, folder, guardian.scratch.resolve()))
            folder.write_json("summary.json", summary)
        except Exception as error:
            if (explained := folder.explain(error)) is not None:
                raise explained from error
            raise
        finally:
            guardian.close()
    print_report(folder, config)
    return 0


def print_plan(config: RunConfig, path: Path) -> int:
    """What ``dry_run=true`` prints: keys, plan, what this machine lacks. Raises UserError with what cannot work."""
    from search_agent.data.inputs import count_tasks
    from search_agent.planning.plan import make_plan
    from search_agent.planning.prediction import as_recorded, steps_of
    from search_agent.planning.preflight import config_faults, known_shape, machine_faults
    from verl.model_shape import read_shape
    from verl.tracking.jsonl import read_metrics
    from verl.trainer.run_folder import RunFolder

    print(to_yaml(results_config(config)))
    faults = config_faults(config)
    shape = known_shape(config)
    if shape is None and not faults:
        shape = read_shape(config.model)  # which says why it is not known
    if shape is not None:
        metrics = RunFolder(path).metrics  # of a run that has begun there
        seen = as_recorded(config, steps_of(read_metrics(metrics))) if metrics.exists() else config
        print(make_plan(seen, shape, count_tasks(config)).text())
    for lack in machine_faults(config, path):
        print(f"this machine: {lack}")
    refuse(faults)
    return 0


def open_folder(config: RunConfig, path: Path) -> RunFolder:
    """The run's folder, after making sure that no live process owns it."""
    from verl.cluster.guardian import reap_orphans
    from verl.trainer.run_folder import RunFolder

    if path.exists():
        reap_orphans(path)
    folder = RunFolder.open(path, to_yaml(results_config(config)), fresh=config.fresh)
    if not (path / "summary.json").exists():
        for fault in folder.set_damaged_aside():
            print(f"warning: {fault}", file=sys.stderr)
    return folder


async def train(config: RunConfig, inputs: Inputs, folder: RunFolder, scratch: Path) -> dict[str, Any]:
    """Start everything, run the controller, and return the summary."""
    from search_agent.evaluation.describe import describe, evidence
    from search_agent.launch import processes
    from search_agent.manifests import check_retriever
    from verl.tracking import make_tracker
    from verl.trainer.controller import Controller, RunData, Settings

    await check_retriever(config, folder)
    config = settle_layers(config, inputs.model, folder)
    data = RunData(inputs.train, inputs.dev, inputs.test, inputs.traces)
    warmup = config.warmup.on(len(inputs.traces))
    settings = Settings(
        seed=config.seed,
        warmup=warmup,
        trainer=config.trainer,
        evaluation=config.evaluation,
        sampling=config.rollout.sampling,
        updates_per_batch=config.learner.updates_per_batch,
        max_policy_tokens=config.max_policy_tokens,
    )
    tracker = make_tracker(  # before the processes: a log-in that fails must not cost their start
        folder.path,
        total_steps=warmup.steps + config.trainer.steps,
        warmup_steps=warmup.steps,
        config=config.tracking,
        run_config=to_dict(config),
    )
    model, read = inputs.model, config.protocol.build().read
    try:
        async with processes(
            config, inputs.source, model, folder.logs, scratch, learn=True, probes=lambda: probe_ids(model)
        ) as live:
            assert live.learners is not None
            assert live.sync is not None
            controller = Controller(
                settings,
                data,
                folder,
                live.learners,
                live.pool,
                live.sync,
                tracker,
                partial(describe, read=read),
                gold_scorer(config, live.learners, model),
                partial(evidence, read=read),
            )
            return await live.watch(controller.run())
    finally:
        tracker.close()


def settle_layers(config: RunConfig, model: str, folder: RunFolder) -> RunConfig:
    """With a number where the plan chooses how many layers the learner computes again.

    The folder keeps it, so that a resumed run computes as many, whatever the plan says by then.
    """
    if config.learner.gradient_checkpointing != "auto" or not config.cluster.gpus_per_process:
        return config
    from search_agent.planning.sizes import learner_config
    from verl.model_shape import read_shape
    from verl.trainer.run_folder import RECOMPUTED

    kept = folder.read_json(RECOMPUTED)
    if kept is None:
        shape = read_shape(model)
        kept = {"layers": learner_config(config, shape).recomputed(shape.layers)}
        folder.write_json(RECOMPUTED, kept)
    return replace(config, learner=replace(config.learner, gradient_checkpointing=kept["layers"]))


def gold_scorer(config: RunConfig, learners: LearnerGroup, model: str) -> GoldScorer | None:
    """What measures ``trainer.gold_logprob``, with the model's own tokens; None where it is off."""
    settings = config.trainer.gold_logprob
    if not (settings.opening or config.trainer.advantage.needs_gold):
        return None
    from transformers import AutoTokenizer

    from search_agent.protocols.framing import encode_data, end_of_turn
    from verl.trainer.gold import GoldScorer

    tokenizer = AutoTokenizer.from_pretrained(model)
    end = end_of_turn(getattr(config.environment.config, "framing", "plain"), tokenizer)
    encode = partial(encode_data, tokenizer)
    return GoldScorer(learners, settings, encode, longest=config.learner.longest_sequence, end=end)


def probe_ids(model: str) -> list[list[int]]:
    """The canary's prompts in the model's own tokens."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    return [tokenizer.encode(text, add_special_tokens=False) for text in _PROBES]


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:], help_of="train"))
