"""``dry_run=true``: what a run will start, how large its batches are, what it needs of each GPU and of the disk.

Sizes are arithmetic on the model's shape and the configuration; nothing is started and no torch is imported. Memory is
told to a tenth of what a learner takes on a CPU; what is certain not to fit is refused.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from search_agent.config import RunConfig
from search_agent.planning import prediction, sizes
from search_agent.planning.rates import read_rates
from search_agent.rewards.pool import pool_config
from verl.cluster.placement import places
from verl.cluster.processes import available_cores, thread_environment
from verl.errors import UserError
from verl.model_shape import ModelShape


@dataclass
class Plan:
    """Titled lists of (what, how much), and what cannot work."""

    sections: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def text(self) -> str:
        """For a person."""
        width = max(len(name) for rows in self.sections.values() for name, _ in rows)
        lines: list[str] = []
        for title, rows in self.sections.items():
            lines += [title, *(f"  {name:<{width}}  {value}" for name, value in rows), ""]
        return "\n".join(lines).rstrip()


def make_plan(config: RunConfig, shape: ModelShape, tasks: Mapping[str, int] | None = None) -> Plan:
    """The plan of a training run of a model of this shape; ``problems`` says what forbids it.

    ``tasks`` is how many tasks each split has, of those that could be counted.
    """
    plan = Plan()
    plan.sections["processes"] = _processes(config, plan)
    plan.sections["batch"] = _batch(config)
    plan.sections["evaluation"] = _evaluation(config, tasks or {})
    plan.sections["memory"] = _memory(config, shape, plan)
    plan.sections["steps and disk"] = _disk(config, shape)
    if config.trainer.steps:
        plan.sections["prediction"] = prediction.rows(config, shape, gpus_needed(config), read_rates())
    context = config.rollout.engine.max_context_tokens
    if context > shape.max_positions:
        plan.problems.append(
            f"rollout.engine.max_context_tokens={context} exceeds the model's {shape.max_positions} positions: lower it"
        )
    return plan


def _processes(config: RunConfig, plan: Plan) -> list[tuple[str, str]]:
    cluster, rollout = config.cluster, config.rollout
    engine = rollout.engine
    rows = [("driver", "1 process (controller, group buffer), 1 guardian")]
    if config.retriever == "embedded":
        rows.append(("retrieval servers", "one process a corpus, on loopback"))
    else:
        rows.append(("retriever", config.retriever))
    rows.append(("learner", f"{cluster.learner_ranks} FSDP2 ranks x {_threads(cluster.learner_threads)}"))
    tensor_parallel = f", tensor parallel {engine.tensor_parallel_size}" if engine.tensor_parallel_size > 1 else ""
    rows.append(("rollout", f"{rollout.workers} workers x {_threads(engine.threads)}{tensor_parallel}"))
    rows.append(("reward", _reward(config)))
    rows.append(("thread environment", " ".join(f"{k}={v}" for k, v in thread_environment(engine.threads).items())))
    if cluster.gpus_per_process:
        rows.append(("GPUs", f"{gpus_needed(config):g} ({cluster.gpus_per_process:g} a process)"))
    else:
        rows.append(("GPUs", f"none; {available_cores()} CPU cores on this machine"))
    rows.append(("placement", _PLACEMENT[cluster.placement]))
    rows.append(("Ray", f"address {cluster.address}, {_places(config, plan)}"))
    within = f"warning after {cluster.stall_warning_s:g} s without movement, end after {cluster.stall_error_s:g} s"
    rows.append(("watchdog", f"{within}; a dead rollout worker is started again {cluster.max_worker_restarts} times"))
    return rows


def _reward(config: RunConfig) -> str:
    pool = pool_config(config.reward)
    if pool is None:
        return f"{config.reward.module}, in the rollout workers"
    return f"{pool.reward.module}, {pool.workers} processes a rollout worker, {pool.deadline_s:g} s a trajectory"


def gpus_needed(config: RunConfig) -> float:
    """GPUs that all processes of a run claim together; 0 on CPU."""
    cluster, rollout = config.cluster, config.rollout
    processes = cluster.learner_ranks + rollout.workers * rollout.engine.tensor_parallel_size
    return cluster.gpus_per_process * processes


_PLACEMENT = {
    "split": "split: learner and rollout apart, both at work at any time",
    "shared": "shared: in turns, engines sleep while the learner works (on CPU they pause)",
}


def _places(config: RunConfig, plan: Plan) -> str:
    """The bundles of the placement group, alike ones counted together."""
    cluster, rollout = config.cluster, config.rollout
    try:
        found = places(cluster, cluster.learner_ranks, rollout.workers, rollout.engine.tensor_parallel_size)
    except UserError as error:
        plan.problems.append(str(error))
        return "no placement"
    counts = Counter(" + ".join(f"{count:g} {kind}" for kind, count in bundle.items()) for bundle in found.bundles)
    return "a placement group of " + ", ".join(f"{count} x ({what})" for what, count in counts.items())


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"


def _batch(config: RunConfig) -> list[tuple[str, str]]:
    trainer = config.trainer
    context = config.rollout.engine.max_context_tokens
    episodes = trainer.prompts_per_step * trainer.samples_per_prompt
    longest = config.bounds.max_episode_tokens
    used = min(longest, context)
    cap = config.learner.max_tokens_per_microbatch
    return [
        (
            "a step",
            f"{trainer.prompts_per_step} prompts x {trainer.samples_per_prompt} samples = {episodes} trajectories",
        ),
        ("a trajectory", f"at most {longest:,} tokens by its turns, {context:,} by the context"),
        ("tokens a step", f"at most {episodes * used:,}"),
        ("optimizer steps a batch", str(config.learner.updates_per_batch)),
        ("micro-batches", f"of at most {cap:,} tokens on each of {config.cluster.learner_ranks} ranks"),
        ("staleness", f"at most {trainer.max_staleness} versions" if trainer.max_staleness else "0: exactly on-policy"),
    ]


def _evaluation(config: RunConfig, tasks: Mapping[str, int]) -> list[tuple[str, str]]:
    """What measuring costs, in episodes."""
    evaluation = config.evaluation
    ways = ", ".join(f"{way.samples} {way.name}" for way in evaluation.decodings)
    each = sum(way.samples for way in evaluation.decodings)
    times = {"dev": 1 + math.ceil(config.trainer.steps / evaluation.every_steps), "test": 2}
    rows = [("a task", f"{ways}; the best checkpoint by dev {evaluation.select_by} {evaluation.metric}")]
    for split, limit in (("dev", evaluation.dev_tasks), ("test", evaluation.test_tasks)):
        known = [number for number in (limit, tasks.get(split)) if number is not None]
        count = f"{min(known):,}" if known else "all"
        total = f" = {min(known) * each * times[split]:,} episodes" if known else ""
        rows.append((split, f"{count} tasks x {each} episodes x {times[split]} times{total}"))
    return rows


def _memory(config: RunConfig, shape: ModelShape, plan: Plan) -> list[tuple[str, str]]:
    """Per learner rank and per rank of a rollout worker's engine, in GiB."""
    parts = sizes.learner_gib(config, shape)
    learning, weights = sum(parts.values()), sizes.engine_weights_gib(config, shape)
    held, host = sizes.held_gib(config, shape)[0], sizes.host_gib(config, shape)
    cache, tokens = sizes.kv_cache_gib(config, shape), sizes.kv_cache_tokens(config, shape)
    context = config.rollout.engine.max_context_tokens
    if config.cluster.gpus_per_process:
        plan.problems += _gpu_problems(config, shape, learning, held, weights)
    if cache > 0 and tokens < context:
        key = "gpu_memory_share" if config.cluster.gpus_per_process else "kv_cache_gib"
        plan.problems.append(
            f"the KV cache of {cache:.2f} GiB holds {tokens:,} tokens and one episode may have {context:,}: raise "
            f"rollout.engine.{key}"
        )
    return [
        ("model", f"{shape.parameters / 1e9:.3f} B parameters"),
        *((f"learner rank: {name}", _size(gib)) for name, gib in parts.items()),
        ("learner rank: in all", _size(learning)),
        ("learner rank: recomputes", _recomputed(config, shape, learning)),
        *([("learner rank: host memory", _size(host))] if host else []),
        ("engine rank: weights", _size(weights)),
        ("engine rank: KV cache", f"{_size(cache)} = {tokens:,} tokens = {tokens / context:.0f} full contexts"),
    ]


def _recomputed(config: RunConfig, shape: ModelShape, learning: float) -> str:
    layers = f"{sizes.learner_config(config, shape).recomputed(shape.layers)} of {shape.layers} layers"
    card = f": {learning:.0f} of {config.cluster.gpu_memory_gib:g} GiB"
    return layers + card * bool(config.cluster.gpus_per_process)


def _size(gib: float) -> str:
    return f"{gib:.2f} GiB" if gib >= 0.1 else f"{gib * 1024:.1f} MiB"


def _gpu_problems(config: RunConfig, shape: ModelShape, learning: float, held: float, weights: float) -> list[str]:
    """What does not fit on a GPU, in GiB: a learner rank while it works, what it holds beside an engine at work."""
    cluster, engine = config.cluster, config.rollout.engine
    problems = []
    usable = sizes.usable_gib(config)
    claimed = engine.gpu_memory_share * cluster.gpu_memory_gib
    if weights >= claimed:
        problems.append(
            f"rollout.engine.gpu_memory_share={engine.gpu_memory_share} of {cluster.gpu_memory_gib:g} GiB does not "
            f"hold the weights ({weights:.1f} GiB): raise it, or rollout.engine.tensor_parallel_size"
        )
    beside = held + claimed + sizes.transfer_gib(config, shape) if cluster.placement == "shared" else 0.0
    if max(learning, beside) > usable:
        told = config.learner.gradient_checkpointing
        more = told != "auto" and config.learner.recomputed(shape.layers) < shape.layers
        problems.append(
            f"a learner rank needs {learning:.1f} GiB"
            + (f", and {beside - claimed:.1f} GiB beside an engine of {claimed:.1f} GiB," if beside else "")
            + f" of the {usable:.1f} GiB that cluster.gpu_memory_gib={cluster.gpu_memory_gib:g} leaves: raise "
            "cluster.learner_ranks, lower rollout.engine.gpu_memory_share or learner.max_tokens_per_microbatch"
            + ", or set learner.gradient_checkpointing=auto"
            * more
        )
    if engine.tensor_parallel_size > 1 and cluster.gpus_per_process < 1:
        problems.append(
            f"cluster.gpus_per_process={cluster.gpus_per_process:g} with rollout.engine.tensor_parallel_size="
            f"{engine.tensor_parallel_size}: the ranks of one engine need whole GPUs; write cluster.gpus_per_process=1"
        )
    return problems


def _disk(config: RunConfig, shape: ModelShape) -> list[tuple[str, str]]:
    trainer = config.trainer
    resumable, exported, shared = sizes.checkpoint_gib(config, shape)
    kept, total = trainer.keep_checkpoints, sizes.disk_gib(config, shape)
    warmup = config.warmup
    length = f"{warmup.epochs} epochs in" if warmup.epochs else f"{warmup.steps}"
    rows = [("warm-up", f"{length} steps of {warmup.sequences_per_step} traces")]
    rows += [
        ("reinforcement", f"{trainer.steps} steps; dev every {config.evaluation.every_steps}"),
        ("a checkpoint", f"{_size(resumable)} to resume from, {_size(exported)} for use"),
        *([("beside them, once", f"{_size(shared)} that rests while the rest is trained")] if shared else []),
        ("disk", f"at most {_size(total)}: {kept} newest checkpoints, one being written, the weights of the two best"),
    ]
    return rows
