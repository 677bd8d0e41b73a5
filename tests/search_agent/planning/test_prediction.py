"""What a run will take, from a card's measured rates: closed forms, and what is not known is not predicted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from transformers import Qwen2Config, Qwen2ForCausalLM

from search_agent.config import RunConfig
from search_agent.console.command import load_config, results_config
from search_agent.planning.plan import make_plan
from search_agent.planning.prediction import (
    against_measured,
    as_recorded,
    forward_flops,
    predict,
    rows,
    steps_of,
    work_of,
)
from search_agent.planning.rates import Rates, rates_of, read_rates
from verl.errors import UserError
from verl.learner.flops import FlopsModel
from verl.model_shape import ModelShape, read_shape

# One layer of 4 x 4 x 4 attention; the head has 4 x 2 weights.
TOY = ModelShape(hidden=4, layers=1, heads=2, kv_heads=2, ffn=8, vocabulary=2, tied=True)
LENGTHS = (
    "prediction.policy_tokens=10",
    "prediction.episode_tokens=30",
    "prediction.longest_tokens=10",
    "prediction.turns=3",
)
RATES = Rates(
    "X1",
    "2026-11-27",
    "abc",
    "made up",
    parameters=TOY.parameters,
    step_s=0.5,
    request_s=0.01,
    read_s=0.001,
    learn_tflops=1e-6,
    sync_gib_per_s={"shm": 2.0},
)


def config(*overrides: str) -> RunConfig:
    return load_config(["trainer.prompts_per_step=4", "trainer.samples_per_prompt=5", *LENGTHS, *overrides])


def test_forward_flops_are_those_that_the_learner_reports() -> None:
    shape = ModelShape(hidden=64, layers=3, heads=4, kv_heads=2, ffn=96, vocabulary=50, tied=True)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=shape.vocabulary,
            hidden_size=shape.hidden,
            intermediate_size=shape.ffn,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            tie_word_embeddings=True,
        )
    )
    assert 3 * forward_flops(shape, 70, 20) == FlopsModel.of(model).training_flops(70, 20)


def test_a_step_is_rollout_learning_and_sync() -> None:
    found = predict(config(), TOY, RATES)
    # 20 episodes: 10 steps with 20 requests in each, and 20 x 20 tokens that are read.
    assert found.rollout_s == pytest.approx(10 * (0.5 + 20 * 0.01) + 400 * 0.001)
    # Matrices: attention 4 x 16, MLP 3 x 32. Attention over 30 tokens: width 4. Head: 8 weights for 10 tokens.
    flops = 20 * 3 * 2 * (30 * (64 + 96) + 4 * 30**2 + 10 * 8)
    assert found.learning_s == pytest.approx(flops / 1e6)
    assert found.sync_s == pytest.approx(TOY.parameters * 4 / 2**30 / 2)
    assert found.step_s == pytest.approx(sum(found.parts.values()))
    assert found.bound == "rollout"


def test_cards_divide_the_work_and_staleness_hides_the_shorter_side() -> None:
    two = predict(config("rollout.workers=2", "cluster.learner_ranks=2"), TOY, RATES)
    assert two.rollout_s == pytest.approx(10 * (0.5 + 10 * 0.01) + 200 * 0.001)
    assert two.learning_s == pytest.approx(predict(config(), TOY, RATES).parts["learning"] / 2)
    ahead = predict(config("trainer.max_staleness=1"), TOY, RATES)
    assert ahead.step_s == pytest.approx(ahead.parts["rollout"] + ahead.parts["sync"])


def test_what_does_not_fit_an_engine_waits_and_a_size_that_was_not_measured_is_scaled() -> None:
    few = predict(config("rollout.engine.max_concurrent_requests=5"), TOY, RATES)
    assert few.rollout_s == pytest.approx(4 * 10 * (0.5 + 5 * 0.01) + 400 * 0.001)
    one_size = replace(RATES, request_s=0.0, requests=10, read_s=0.0)
    assert predict(config(), TOY, one_size).rollout_s == pytest.approx(10 * 0.5 * 2)
    assert predict(config("rollout.engine.max_concurrent_requests=10"), TOY, one_size).rollout_s == pytest.approx(10)
    larger = replace(RATES, parameters=TOY.parameters / 3)
    assert predict(config(), TOY, larger).rollout_s == pytest.approx(3 * predict(config(), TOY, RATES).parts["rollout"])


def test_the_engine_steps_for_the_longest_episode_and_only_for_requests_that_are_left() -> None:
    # 200 tokens in all, in 25 steps: each costs its constant, each token its request's.
    found = predict(config("prediction.longest_tokens=25"), TOY, RATES)
    assert found.rollout_s == pytest.approx(25 * 0.5 + 200 * 0.01 + 400 * 0.001)
    one_size = replace(RATES, request_s=0.0, requests=16, read_s=0.0)
    # 20 requests are more than the 16 that were measured, but in 25 steps there are 8 in the mean.
    assert predict(config("prediction.longest_tokens=25"), TOY, one_size).rollout_s == pytest.approx(25 * 0.5)
    assert predict(config(), TOY, one_size).rollout_s == pytest.approx(10 * 0.5 * 20 / 16)


def test_the_hosts_part_of_a_step_stays_and_the_cards_grows_with_the_model() -> None:
    """Of a step of the measured model the host takes all, and the card half beside it."""
    shared = replace(RATES, host_share=1.0, device_share=0.5)
    steps, reading = 10 * (0.5 + 20 * 0.01), 400 * 0.001
    for times, slower in ((1 / 5, 1.0), (1, 1.0), (3, 1.5)):
        rates = replace(shared, parameters=TOY.parameters / times)
        assert predict(config(), TOY, rates).rollout_s == pytest.approx(slower * steps + times * reading)


def test_turns_take_their_time_on_each_engine_whatever_the_model() -> None:
    with_turns, larger = replace(RATES, turn_s=0.02), replace(RATES, turn_s=0.02, parameters=TOY.parameters / 3)
    tokens = predict(config(), TOY, RATES).parts["rollout"]
    assert predict(config(), TOY, with_turns).rollout_s == pytest.approx(tokens + 20 * 3 * 0.02)
    assert predict(config(), TOY, larger).rollout_s == pytest.approx(3 * tokens + 20 * 3 * 0.02)
    halved = predict(config("rollout.workers=2"), TOY, with_turns).parts["rollout"]
    assert halved == pytest.approx(10 * (0.5 + 10 * 0.01) + 200 * 0.001 + 10 * 3 * 0.02)


def test_waiting_hides_behind_other_episodes_until_the_longest_is_alone() -> None:
    busy = predict(config(), TOY, RATES).parts["rollout"]  # 7.4 s; alone, the longest takes 10 steps of 0.51 s
    assert predict(config("prediction.wait_s=2"), TOY, RATES).rollout_s == pytest.approx(busy)
    assert predict(config("prediction.wait_s=9"), TOY, RATES).rollout_s == pytest.approx(10 * 0.51 + 9)


def test_only_what_is_trained_on_is_learned_from_and_a_push_costs_something_whatever_its_size() -> None:
    whole = predict(config(), TOY, RATES)
    some = predict(config("prediction.trained_share=0.25"), TOY, replace(RATES, push_s=0.04))
    assert some.learning_s == pytest.approx(whole.parts["learning"] / 4)
    assert some.sync_s == pytest.approx(whole.parts["sync"] + 0.04)
    assert some.rollout_s == whole.rollout_s


def test_passes_besides_training_are_counted() -> None:
    plain = work_of(config(), TOY).train_flops
    for key in (
        "trainer.loss.kl_coefficient=0.1",
        "learner.updates_per_batch=2",
        "learner.gradient_checkpointing=true",
    ):
        assert work_of(config(key), TOY).train_flops == pytest.approx(plain * 4 / 3), key


def test_without_lengths_episodes_are_as_long_as_the_bounds_allow() -> None:
    free = work_of(load_config([]), TOY)
    assert free.policy_tokens + free.read_tokens == 512  # the context of the quick start
    assert (free.policy_tokens, free.longest_tokens, free.turns) == (4 * 64, 4 * 64, 4)
    assert work_of(load_config(["prediction.policy_tokens=10"]), TOY).longest_tokens == 4 * 64


def test_the_plan_says_time_cost_bound_and_rates() -> None:
    gpu = ("cluster.gpus_per_process=1", "prediction.card=x1", "prediction.price_per_gpu_hour=3", "trainer.steps=3600")
    told = dict(rows(config(*gpu), TOY, 2.0, [RATES]))
    step = predict(config(*gpu), TOY, RATES).step_s
    assert told["a step"].startswith(f"{step:.2g} s: rollout 7.4 s")
    assert told["a step"].endswith("bound by rollout")
    assert told["cost"] == f"{step * 2 * 3:,.2f} (2 GPUs)"
    unknown = dict(rows(config(*gpu, "prediction.longest_tokens=null"), TOY, 2.0, [RATES]))
    assert unknown["a step"].startswith("at most")
    assert "as long as the bounds allow" in unknown["assumed"]
    assert "every group trained on" in told["assumed"]  # the quick start drops uniform ones
    known = ("prediction.wait_s=0", "prediction.trained_share=1")
    assert "assumed" not in dict(rows(config(*gpu, *known), TOY, 2.0, [RATES]))


def test_what_is_not_known_is_not_predicted() -> None:
    gpu = "cluster.gpus_per_process=1"
    assert rows(config(gpu), TOY, 2.0, [RATES])[0][0] == "nothing"
    [(what, why)] = rows(config(gpu, "prediction.card=B7"), TOY, 2.0, [RATES])
    assert (what, why) == ("nothing", "no rate was measured on B7 (docs/results/rates.yaml has X1)")
    without = replace(RATES, sync_gib_per_s={"nccl": 1.0})
    told = dict(rows(config(gpu, "prediction.card=X1"), TOY, 2.0, [without]))
    assert told["not in it"] == "sync: no such rate of X1"
    assert "cost" not in told


def test_the_newest_row_of_a_card_counts() -> None:
    older = replace(RATES, date="2026-01-01", step_s=9.0)
    assert rates_of("x1", [RATES, older]) is RATES
    assert rates_of("x2", [RATES, older]) is None


def test_the_table_is_whole_and_the_quick_start_is_predicted_from_it() -> None:
    table = read_rates()
    assert {row.card for row in table} >= {"H200", "CPU"}
    assert all(row.date and row.commit and row.source for row in table)
    quick = load_config(["prediction.policy_tokens=58", "prediction.episode_tokens=136"])
    plan = make_plan(quick, read_shape("Qwen/Qwen2.5-0.5B"))
    assert "bound by" in dict(plan.sections["prediction"])["a step"]
    assert read_rates(Path("no such file")) == []


def test_prediction_keys_do_not_make_another_run_and_have_ranges() -> None:
    assert results_config(load_config([])) == results_config(load_config(["prediction.card=H200"]))
    no_count = ("policy_tokens=0", "episode_tokens=0", "longest_tokens=0", "turns=0.5", "turns=.inf", "turns=.nan")
    no_share = ("price_per_gpu_hour=-1", "price_per_gpu_hour=.inf", "wait_s=-1", "trained_share=1.5")
    for wrong in (*no_count, *no_share):
        with pytest.raises(UserError, match=wrong.partition("=")[0]):
            load_config([f"prediction.{wrong}"])
    with pytest.raises(UserError, match="counts them too"):
        load_config(["prediction.policy_tokens=9", "prediction.episode_tokens=8"])
    with pytest.raises(UserError, match=r"longest_tokens=8, which is the most of any episode"):
        load_config(["prediction.policy_tokens=9", "prediction.longest_tokens=8"])


def step_row(policy_tokens: float, tokens: float, step_s: float) -> dict[str, float]:
    parts = {"seconds/step": step_s, "seconds/rollout": 3.0, "seconds/learn": 2.0, "seconds/sync": 0.5}
    return {"policy_tokens": policy_tokens, "tokens": tokens, **parts}


def test_lengths_are_those_that_a_run_has_had_unless_they_are_told() -> None:
    steps = steps_of([{"warmup/loss": 1.0}, step_row(90, 99, 9), step_row(9.6, 29, 5), step_row(10.8, 32, 6)])
    assert [row["seconds/step"] for row in steps] == [5, 6]  # the first warms up
    bare = load_config([])
    seen = as_recorded(bare, steps).prediction
    assert (seen.policy_tokens, seen.episode_tokens) == (10, 30)
    assert as_recorded(load_config(["prediction.policy_tokens=7"]), steps).prediction.policy_tokens == 7
    assert as_recorded(bare, []) is bare
    longer = as_recorded(load_config(["prediction.policy_tokens=40"]), steps).prediction  # than what was seen
    assert (longer.policy_tokens, longer.episode_tokens) == (40, 40)


def test_a_runs_longest_episode_turns_wait_and_share_trained_on_are_taken_from_its_metrics() -> None:
    seen = {"policy_tokens_max": 70.0, "turns": 2.5, "seconds/longest_wait": 0.02, "trained_episodes": 32.0}
    more = {"policy_tokens_max": 80.0, "turns": 2.7, "seconds/longest_wait": 0.04, "trained_episodes": 64.0}
    found = as_recorded(load_config([]), [step_row(10, 30, 5) | seen, step_row(10, 30, 5) | more]).prediction
    assert (found.longest_tokens, found.turns, found.wait_s) == (75, pytest.approx(2.6), pytest.approx(0.03))
    assert found.trained_share == pytest.approx(48 / 128)
    older = as_recorded(load_config(["prediction.turns=2"]), [step_row(10, 30, 5)]).prediction
    assert (older.longest_tokens, older.turns, older.wait_s, older.trained_share) == (None, 2, None, None)


def test_a_run_that_ended_says_what_its_steps_took_and_what_was_to_be_expected() -> None:
    cpu = replace(RATES, card="CPU")
    told = against_measured(config(), TOY, [step_row(10, 30, 5.0)], [cpu])
    found = predict(config(), TOY, cpu)
    assert told is not None
    assert told.startswith("a step took 5 s (rollout 3, learning 2, sync 0.5); ")
    assert f"{found.step_s:.2g} s by the rates of CPU of 2026-11-27 (rollout {found.rollout_s:.2g}" in told
    assert against_measured(config(), TOY, [], [cpu]) is None
    assert against_measured(config(), TOY, [step_row(10, 30, 5.0)], [RATES]) is None
