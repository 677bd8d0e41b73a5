"""The plan's arithmetic agrees with hand-worked sizes, and what cannot fit is refused with the key to change."""

from __future__ import annotations

from pathlib import Path

import pytest

from search_agent.config import RunConfig
from search_agent.console.command import load_config
from search_agent.planning import sizes
from search_agent.planning.plan import make_plan
from search_agent.train import settle_layers
from verl.errors import UserError, refuse
from verl.model_shape import ModelShape, read_shape
from verl.trainer.run_folder import RECOMPUTED, RunFolder

# Easy to count: one layer of 4 x 4 x 4 attention, no embeddings to speak of.
TOY = ModelShape(hidden=4, layers=1, heads=2, kv_heads=2, ffn=8, vocabulary=2, tied=True)
GIB = 2**30


def config(*overrides: str) -> RunConfig:
    return load_config(overrides)


def problems(shape: ModelShape, *overrides: str) -> list[str]:
    return make_plan(config(*overrides), shape).problems


def test_parameters_of_a_known_model_are_the_published_ones() -> None:
    assert read_shape("Qwen/Qwen2.5-3B").parameters == 3_085_938_688
    assert read_shape("Qwen/Qwen2.5-7B-Instruct").parameters == 7_615_616_512
    # These have no biases, which a shape counts; Mistral's heads are narrower than its hidden width says.
    assert read_shape("meta-llama/Llama-3.1-8B-Instruct").parameters == pytest.approx(8_030_261_248, rel=1e-4)
    assert read_shape("mistralai/Mistral-Small-24B-Instruct-2501").parameters == pytest.approx(23_572_403_200, rel=1e-4)


def test_what_is_held_between_steps_is_sharded_over_ranks() -> None:
    one = sizes.learner_gib(config(), TOY)
    two = sizes.learner_gib(config("cluster.learner_ranks=2"), TOY)
    assert one["weights"] == one["gradients"] == TOY.parameters * 4 / GIB
    assert one["optimizer"] == 2 * one["weights"]
    for part in ("weights", "gradients", "optimizer"):
        assert two[part] == one[part] / 2
    assert "reference" not in one


def test_a_kl_term_keeps_a_reference_unless_the_model_trains_adapters() -> None:
    kl = "trainer.loss.kl_coefficient=0.001"
    assert "reference" in sizes.learner_gib(config(kl), TOY)
    adapted = sizes.learner_gib(config(kl, "learner.lora={rank: 2}", "warmup.steps=0"), TOY)
    assert "reference" not in adapted
    warmed = sizes.learner_gib(config(kl, "learner.lora={rank: 2}"), TOY)  # the adapters as the warm-up left them
    assert warmed["reference"] == warmed["gradients"]
    # q, k, v, o: 4 + 4 ends each; gate, up, down: 4 + 8 each.
    assert adapted["gradients"] == 2 * (4 * 8 + 3 * 12) * 4 / GIB


def test_the_kv_cache_is_counted_in_tokens() -> None:
    # Keys and values of one layer: 2 x 2 heads x 2 x 4 bytes = 32 bytes a token.
    assert sizes.kv_cache_tokens(config("rollout.engine.kv_cache_gib=1"), TOY) == GIB // 32


def test_disk_counts_resumable_checkpoints_and_the_best_weights() -> None:
    weights = TOY.parameters * 4 / GIB
    assert sizes.disk_gib(config("trainer.keep_checkpoints=3"), TOY) == pytest.approx(4 * 4 * weights + 2 * weights)


def test_offload_shards_critic_and_reference_change_the_plan() -> None:
    shape = read_shape("Qwen/Qwen2.5-7B")
    ppo = ("trainer.advantage.name=gae", "trainer.kl_reward.coefficient=0.001", "learner.compute_dtype=bfloat16")
    gpus = ("cluster.gpus_per_process=1", "cluster.learner_ranks=8", "rollout.engine.dtype=bfloat16")
    gpu = (*ppo, *gpus, "trainer.drop_uniform_groups=false", "warmup.steps=0")
    plain, whole = config(*gpu), config(*gpu, "learner.offload=all")
    copies = config(*gpu, "learner.shard_ranks=1")
    assert sizes.held_gib(copies, shape)[0] == pytest.approx(8 * sizes.held_gib(plain, shape)[0], rel=1e-6)
    device, host = sizes.held_gib(whole, shape)
    assert (device, host) == (0, pytest.approx(sizes.held_gib(plain, shape)[0]))
    # 12 bytes a weight for each of two models, and 2 of each for use; the model's folder has the reference.
    resumable, exported, shared = sizes.checkpoint_gib(plain, shape)
    critic = shape.parameters - shape.vocabulary * shape.hidden + shape.hidden
    assert resumable * GIB == pytest.approx(12 * (shape.parameters + critic), rel=1e-6)
    assert exported * GIB == 2 * shape.parameters
    assert shared == 0
    assert sizes.checkpoint_gib(config(*gpu[:-1]), shape)[2] * GIB == 2 * shape.parameters  # a warm-up moved it


def test_what_a_card_reports_and_contexts_take_is_not_there_to_use() -> None:
    assert sizes.usable_gib(config("cluster.gpus_per_process=1")) == pytest.approx(79 - 0.75)


def test_a_cache_below_one_context_is_refused() -> None:
    (line,) = problems(read_shape("Qwen/Qwen2.5-7B"), "rollout.engine.kv_cache_gib=0.01")
    assert "raise rollout.engine.kv_cache_gib" in line


def test_a_learner_too_large_for_its_gpu_is_refused() -> None:
    found = problems(read_shape("Qwen/Qwen2.5-7B"), "cluster.gpus_per_process=1", "rollout.engine.dtype=bfloat16")
    assert any("raise cluster.learner_ranks" in line for line in found)


def test_an_engine_over_several_gpus_needs_whole_ones() -> None:
    parallel = ("rollout.engine.tensor_parallel_size=2", "rollout.engine.executor=mp")
    shared = ("cluster.placement=shared", "cluster.gpus_per_process=0.5")
    assert any("whole GPUs" in line for line in problems(TOY, *shared, *parallel))
    whole = make_plan(config("cluster.gpus_per_process=1", *parallel), TOY)
    assert not whole.problems
    assert dict(whole.sections["processes"])["GPUs"].startswith("3 ")


def test_ranks_and_workers_that_share_gpus_come_in_pairs() -> None:
    shared = ("cluster.placement=shared", "cluster.gpus_per_process=0.5", "rollout.workers=2")
    assert any("write cluster.learner_ranks=2" in line for line in problems(TOY, *shared))
    rows = dict(make_plan(config(*shared, "cluster.learner_ranks=2"), TOY).sections["processes"])
    assert rows["placement"].startswith("shared")
    assert rows["Ray"].endswith("2 x (2 CPU + 1 GPU)")


def test_an_engine_that_sleeps_need_not_fit_beside_a_learner_at_work() -> None:
    shape = read_shape("Qwen/Qwen2.5-3B")  # 101 GiB while it works, 34 GiB of them between steps
    shared = ("rollout.engine.dtype=bfloat16", "cluster.placement=shared", "cluster.gpus_per_process=0.5")
    gpu = (*shared, "cluster.gpu_memory_gib=130", "learner.gradient_checkpointing=false")
    assert not problems(shape, *gpu, "rollout.engine.gpu_memory_share=0.5")
    (line,) = problems(shape, *gpu, "rollout.engine.gpu_memory_share=0.75")
    assert "a learner rank needs 100.8 GiB, and 34.5 GiB beside an engine of 97.5 GiB" in line


def test_as_few_layers_are_recomputed_as_memory_needs() -> None:
    shape = read_shape("Qwen/Qwen2.5-7B")
    node = ("cluster.gpus_per_process=1", "cluster.learner_ranks=8", "learner.compute_dtype=bfloat16")
    pack = ("rollout.engine.dtype=bfloat16", "learner.max_tokens_per_microbatch=16384")

    def row(*more: str) -> str:
        return dict(make_plan(config(*node, *pack, *more), shape).sections["memory"])["learner rank: recomputes"]

    assert row("cluster.gpu_memory_gib=80") == "4 of 28 layers: 69 of 80 GiB"
    assert row("cluster.gpu_memory_gib=141") == "0 of 28 layers: 76 of 141 GiB"
    assert row("learner.gradient_checkpointing=true").startswith("28 of 28 layers: ")
    assert row("learner.gradient_checkpointing=false").startswith("0 of 28 layers: ")
    # An engine asleep on the card keeps a context and 3 GiB besides: 66.5 GiB are left of 70.25.
    shared = ("cluster.placement=shared", "cluster.gpus_per_process=0.5", "rollout.workers=8")
    assert row(*shared) == "6 of 28 layers: 65 of 80 GiB"
    assert row("cluster.gpus_per_process=0") == "0 of 28 layers"


def test_what_does_not_fit_is_told_to_recompute_where_it_does_not() -> None:
    shape, gpu = read_shape("Qwen/Qwen2.5-7B"), ("cluster.gpus_per_process=1", "rollout.engine.dtype=bfloat16")
    for told, advised in (("auto", False), ("true", False), ("false", True), ("1", True)):
        lines = problems(shape, *gpu, f"learner.gradient_checkpointing={told}")
        assert any("or set learner.gradient_checkpointing=auto" in line for line in lines) == advised, told


def test_a_resumed_run_recomputes_as_many_layers_as_it_began_with(tmp_path: Path) -> None:
    folder, gpu = RunFolder(tmp_path), ("cluster.gpus_per_process=1", "cluster.gpu_memory_gib=40")
    model = "Qwen/Qwen2.5-1.5B"
    chosen = settle_layers(config(*gpu), model, folder).learner.gradient_checkpointing
    assert chosen == sizes.learner_config(config(*gpu), read_shape(model)).gradient_checkpointing
    assert chosen in range(1, 28)
    assert not folder.begun  # so that another setting may be tried after a start that failed
    folder.write_json(RECOMPUTED, {"layers": 28})
    assert settle_layers(config(*gpu), model, folder).learner.gradient_checkpointing == 28
    told = config(*gpu, "learner.gradient_checkpointing=true")
    assert settle_layers(told, model, folder) is told
    assert settle_layers(config(), model, folder) == config()  # on a CPU every rank keeps all


def test_all_problems_are_told_at_once() -> None:
    plan = make_plan(config("rollout.engine.kv_cache_gib=0.01"), read_shape("Qwen/Qwen2.5-7B"))
    plan.problems.append("another")
    with pytest.raises(UserError, match=r"KV cache(.|\n)*another"):
        refuse(plan.problems)


def test_the_plan_counts_prompts_trajectories_and_tokens() -> None:
    rows = dict(make_plan(config("trainer.prompts_per_step=4", "trainer.samples_per_prompt=3"), TOY).sections["batch"])
    assert rows["a step"] == "4 prompts x 3 samples = 12 trajectories"
    assert rows["tokens a step"] == f"at most {12 * 512:,}"


def test_a_plan_says_where_the_reward_runs() -> None:
    pooled = ("reward.plugin=search_agent.rewards.pool", "+reward.reward={plugin: search_agent.rewards.em}")
    plans = [make_plan(config("reward=em", *more), TOY) for more in ((), pooled)]
    assert [dict(plan.sections["processes"])["reward"] for plan in plans] == [
        "search_agent.rewards.em, in the rollout workers",
        "search_agent.rewards.em, 1 processes a rollout worker, 10 s a trajectory",
    ]
