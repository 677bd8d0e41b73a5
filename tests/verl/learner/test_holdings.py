"""The plan against the learner: what it holds and what it writes, to 5 %."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from verl.algorithms.config import AdvantageConfig, LossConfig
from verl.cluster.processes import free_port
from verl.data.samples import TrainingSample
from verl.learner.config import LearnerConfig, LoraConfig, OptimizerConfig
from verl.learner.distributed import init_process
from verl.learner.holdings import checkpoint_bytes, holdings
from verl.learner.learner import Learner
from verl.learner.memory import counts_of
from verl.learner.phase import Phase
from verl.model_shape import read_shape

MakeSamples = Callable[..., list[TrainingSample]]
GRPO = Phase(OptimizerConfig(), LossConfig(), 10)
KL = Phase(OptimizerConfig(), LossConfig(kl_coefficient=0.1), 10)
PPO = replace(GRPO, advantage=AdvantageConfig(name="gae"), keep_reference=True)
FULL = LearnerConfig()
HALF = LearnerConfig(compute_dtype="bfloat16")
LORA = LearnerConfig(lora=LoraConfig(rank=64))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    shape = Qwen2Config(
        vocab_size=2000,
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    Qwen2ForCausalLM(shape).save_pretrained(folder)
    return folder


def here(tensors: Iterable[Tensor]) -> int:
    """Bytes of this rank's shards."""
    local = (t.to_local() if isinstance(t, DTensor) else t for t in tensors)
    return sum(t.numel() * t.element_size() for t in local)


def held(learner: Learner) -> dict[str, int]:
    """What this rank holds, by the plan's names; nothing of 0 bytes."""
    engines = {"optimizer": learner._engine}
    found = {"weights": here(learner.model.weights.values()), "reference": here(learner._reference.weights().values())}
    if learner._critic is not None:
        found["critic"] = here(learner._critic._model.weights.values())
        engines["critic's optimizer"] = learner._critic._engine
    for name, engine in engines.items():
        moments = (state[m] for state in engine._optimizer.state.values() for m in ("exp_avg", "exp_avg_sq"))
        found[name] = here(moments)
    return {name: size for name, size in found.items() if size}


def planned(learner: Learner, model: Path, ranks: int = 1) -> dict[str, int]:
    counts = counts_of(learner.config, read_shape(str(model)))
    parts = holdings(learner.config, learner.phase, counts, ranks)
    return {name: part.held for name, part in parts.items() if part.held}


def on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("config", "phases"),
    [
        (FULL, [GRPO]),
        (FULL, [KL]),
        (HALF, [GRPO, KL]),
        (FULL, [PPO]),
        (HALF, [GRPO, PPO]),
        (replace(FULL, offload="all"), [GRPO, PPO]),
        (replace(HALF, offload="optimizer"), [KL]),
        (LORA, [GRPO]),
        (LORA, [KL, KL]),
        (LORA, [replace(GRPO, all_weights=True), KL]),
        (LORA, [replace(KL, all_weights=True)]),
        (LORA, [GRPO, PPO]),
    ],
    ids=[
        *("grpo", "grpo-kl", "warmed-kl-half", "ppo-kl", "warmed-ppo-kl-half", "host-ppo-kl", "host-moments-half-kl"),
        *("lora", "warmed-lora-kl", "all-then-lora-kl", "all-kl-under-lora", "warmed-lora-ppo"),
    ],
)
def test_the_plan_says_what_is_held_and_written(
    config: LearnerConfig, phases: list[Phase], model: Path, make_samples: MakeSamples, tmp_path: Path
) -> None:
    learner = Learner(model, config, seed=0)
    for phase in phases:
        learner.begin_phase(phase)
        learner.update(make_samples(4))
    assert held(learner) == pytest.approx(planned(learner, model), rel=0.05)
    learner.save_checkpoint(tmp_path / "learner")
    learner.save_hf(tmp_path / "hf")
    plan = checkpoint_bytes(config, learner.phase, counts_of(config, read_shape(str(model))))
    written = {name: on_disk(tmp_path / "learner" / name) for name in ("policy", "critic", "still")}
    written["hf"] = on_disk(tmp_path / "hf")
    assert written == pytest.approx(plan, rel=0.05, abs=20_000)  # names, shapes and the random state
    assert sum(written.values()) == pytest.approx(sum(plan.values()), rel=0.05)


@pytest.mark.parametrize("shards", [None, 1])
def test_the_plan_says_what_each_of_two_ranks_holds(shards: int | None, model: Path) -> None:
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    port = free_port()
    ranks = [context.Process(target=_hold, args=(rank, port, str(model), shards, answers)) for rank in range(2)]
    for process in ranks:
        process.start()
    for _ in ranks:
        ours, plan = answers.get(timeout=120)
        assert ours == pytest.approx(plan, rel=0.05)
    for process in ranks:
        process.join(10)


def _hold(rank: int, port: int, model: str, shards: int | None, answers: multiprocessing.Queue[object]) -> None:
    import numpy as np

    from tests.verl.learner.conftest import random_sample

    torch.set_num_threads(1)
    init_process(rank, 2, "127.0.0.1", port)
    learner = Learner(model, replace(HALF, shard_ranks=shards), seed=0)
    learner.begin_phase(GRPO)
    learner.begin_phase(PPO)
    learner.update([random_sample(np.random.default_rng(0), 12) for _ in range(4)])
    answers.put((held(learner), planned(learner, Path(model), 2)))
    dist.barrier()
    dist.destroy_process_group()
