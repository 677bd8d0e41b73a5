"""What a run reads, found and checked before anything heavy is imported or started: data, corpus, model folder."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from search_agent.config import RunConfig
from search_agent.data.source import Source
from search_agent.data.traces import NO_DAY, load_traces, share_of
from search_agent.planning.lengths import check_lengths
from search_agent.rewards.evidence import EVIDENCE
from search_agent.rewards.pool import pool_config, reward_function
from verl.data.load import read_rows
from verl.data.tasks import Task
from verl.errors import UserError
from verl.rollout.groups import Group
from verl.trajectory import Trajectory

if TYPE_CHECKING:
    from verl.data.samples import TrainingSample

DATA_ROOT = Path("data")


@dataclass(frozen=True)
class Inputs:
    """Everything that training needs from outside."""

    source: Source
    model: str
    """The model's folder."""
    train: list[Task]
    dev: list[Task]
    test: list[Task]
    traces: list[TrainingSample]
    """Of the warm-up, and of ``trainer.mixed_traces``; empty where neither is asked for."""


def read_inputs(config: RunConfig) -> Inputs:
    """Read all of it. Raises UserError with all faults of a file; a model is downloaded last, and only once."""
    source = find_source(config)
    train, dev, test = source.train.load(), source.dev.load(), source.test.load()
    if config.trainer.turn_credit.coefficient:
        check_evidence(train)
    model = model_path(config, source)
    measured = {"dev": dev[: config.evaluation.dev_tasks], "test": test[: config.evaluation.test_tasks]}
    check_lengths({"train": train, **measured}, config, model)
    check_metric(config, dev[: config.evaluation.dev_tasks])
    traces = []
    if config.warmup.enabled or config.trainer.mixed_traces:
        traces = load_traces(
            source.traces,
            config.protocol.build(),
            model,
            prompts=source.train.prompts,
            warmup=config.warmup,
            longest=config.learner.longest_sequence,
            today=getattr(config.environment.config, "date", NO_DAY),
        )
        traces = share_of(traces, source.traces_fraction, config.seed)
    return Inputs(source, model, train, dev, test, traces)


def check_metric(config: RunConfig, tasks: Sequence[Task]) -> None:
    """Raises UserError if a reward of ours measures no ``evaluation.metric``, or a part that gdpo compares or a budget
    counts: known from episodes that say nothing.

    A reward of the user's own runs in processes of its own, later: it is held to its metric at the first evaluation.
    """
    budget = config.trainer.budget
    asked = config.evaluation.metric != "em" or config.trainer.advantage.parts or budget.part
    if not asked or pool_config(config.reward) is not None:
        return
    from search_agent.evaluation.describe import describe
    from verl.trainer.evaluator import chosen_score
    from verl.trainer.shaping import parts_of, spent_of, usable_episodes

    reward = reward_function(config.reward, config.protocol.build())
    groups = []
    for number, task in enumerate(tasks):
        silent = Trajectory(task.id, 0)
        silent.append_prompt([0], task.question)
        silent.append_generated([0], "", [0.0], [0], "stop")
        score = reward(task, silent)
        silent.outcome, silent.reward, silent.reward_parts = "finished", score.reward, score.parts
        groups.append(Group(number, task, [silent]))
    parts_of(usable_episodes(groups), config.trainer.advantage)
    if budget.part:
        spent_of(usable_episodes(groups), budget)
    chosen_score({config.evaluation.select_by: describe(groups)}, config.evaluation)


def count_tasks(config: RunConfig) -> dict[str, int]:
    """Tasks of dev and test by split, as far as they are known without building or downloading anything."""
    data, counts = config.data.config, {}
    for split in ("dev", "test"):
        file = Path(str(getattr(data, split, "")))
        if (number := getattr(data, f"{split}_questions", None)) is not None:
            counts[split] = int(number)
        elif file.is_file():
            with contextlib.suppress(UserError):  # its faults are told when it is read
                counts[split] = sum(1 for _ in read_rows(file))
    return counts


def check_evidence(tasks: Sequence[Task]) -> None:
    """Raises UserError unless every task says which passages hold its evidence: turn credit pays for finding them."""
    lacking = [task.id for task in tasks if not task.metadata.get(EVIDENCE)]
    if lacking:
        raise UserError(
            f"trainer.turn_credit.coefficient is above 0 and {len(lacking)} of {len(tasks)} training tasks have no "
            f"metadata.{EVIDENCE} (task {lacking[0]} first): add them, or write 0"
        )


def find_source(config: RunConfig) -> Source:
    """The run's data, built first if it is the embedded world and is not there yet."""
    source: Source = config.data.build(out=DATA_ROOT, seed=config.seed)
    if config.retriever == "embedded":
        lacking = [name for name, split in source.splits.items() if split.corpus is None]
        if lacking:
            raise UserError(
                f"retriever=embedded has no corpus to serve for {', '.join(lacking)}: "
                "write data.corpus=FILE, or retriever=http://HOST:PORT"
            )
        for corpus in sorted({split.corpus for split in source.splits.values() if split.corpus is not None}):
            if not corpus.exists():
                raise UserError(f"data.corpus={corpus}: no such file; give the passages that retriever=embedded serves")
    return source


def model_path(config: RunConfig, source: Source) -> str:
    """The model's folder, downloaded once if ``model`` is a hub name. Raises UserError if it cannot be had."""
    if config.model != "embedded":
        return config.model if Path(config.model).exists() else download_model(config.model)
    if source.model is None:
        raise UserError("model=embedded goes with data=embedded; write model=FOLDER, or a hub name")
    return str(source.model)


def download_model(name: str) -> str:
    """Fetch a model of the hub into its local cache, and return the folder."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        wanted = ["*.json", "*.safetensors", "*.txt", "*.jinja", "*.model"]
        return str(snapshot_download(name, allow_patterns=wanted))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"model={name}: no such folder, and it could not be downloaded: {reason}") from error
