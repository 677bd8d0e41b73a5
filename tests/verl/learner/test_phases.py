"""Phases: schedules that end with them, a reference and a critic that are the policy as it is, nothing scored twice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from verl.algorithms.config import AdvantageConfig, LossConfig
from verl.config.build import build, to_dict
from verl.data.samples import TrainingSample
from verl.data.splice import mismatched, splice
from verl.learner.config import LearnerConfig, LoraConfig, OptimizerConfig
from verl.learner.learner import Learner
from verl.learner.phase import Phase
from verl.trainer.config import TrainerConfig, WarmupConfig
from verl.trainer.phases import reinforcement_phase, warmup_phase

MakeSamples = Callable[..., list[TrainingSample]]
FAST = OptimizerConfig(learning_rate=1e-2)
LORA = LearnerConfig(lora=LoraConfig(rank=4, alpha=8))
WARM = Phase(FAST, LossConfig(name="weighted_nll"), 10)
KL = Phase(FAST, LossConfig(kl_coefficient=0.1), 10)


def count_forwards(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of samples at each pass without gradient."""
    calls: list[int] = []
    evaluate = learner._engine.evaluate

    def counted(model: Any, samples: list[TrainingSample], score: Any) -> Any:
        calls.append(len(samples))
        return evaluate(model, samples, score)

    monkeypatch.setattr(learner._engine, "evaluate", counted)
    return calls


def test_a_warm_up_takes_one_step_a_batch_whatever_reinforcement_splits_its_batches_into(
    model_folder: Path, make_samples: MakeSamples, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimizer = OptimizerConfig(learning_rate=1.0, schedule="linear")
    learner = Learner(model_folder, LearnerConfig(updates_per_batch=2), seed=0)
    learner.begin_phase(warmup_phase(WarmupConfig(steps=4, optimizer=optimizer)))
    calls = count_forwards(learner, monkeypatch)
    rates = [learner.update(make_samples(4))["learning_rate"] for _ in range(4)]
    assert rates == pytest.approx([1.0, 0.75, 0.5, 0.25])
    assert calls == []  # a trace has no ratio: nothing is scored beforehand
    phase = reinforcement_phase(TrainerConfig(steps=4), 2)
    assert phase.optimizer_steps == 8


def test_engines_have_the_whole_model_before_the_first_phase_and_adapters_in_one_that_trains_them(
    model_folder: Path,
) -> None:
    learner = Learner(model_folder, LORA, seed=0)
    assert not learner.sends_adapters, "a supervised run is measured before it learns"
    learner.begin_phase(WARM)
    assert learner.sends_adapters
    learner.begin_phase(replace(WARM, all_weights=True))
    assert not learner.sends_adapters


def test_a_phase_is_read_back_as_it_was_written() -> None:
    phase = replace(
        KL, advantage=AdvantageConfig(name="gae"), keep_reference=True, lora=True, moved=("base", "adapters")
    )
    assert build(Phase, to_dict(phase)) == phase


@pytest.mark.parametrize("config", [LearnerConfig(), LORA, LearnerConfig(offload="all")], ids=["full", "lora", "host"])
@pytest.mark.parametrize("warm_all", [False, True], ids=["same", "all"])
def test_the_reference_is_the_policy_as_the_phase_finds_it_also_after_a_warm_up_and_a_restart(
    config: LearnerConfig, warm_all: bool, model_folder: Path, make_samples: MakeSamples, tmp_path: Path
) -> None:
    samples = make_samples(5)
    learner = Learner(model_folder, config, seed=0)
    learner.begin_phase(replace(WARM, all_weights=warm_all and config.lora is not None))
    learner.update(samples)
    learner.update(samples)
    learner.begin_phase(KL)
    start = learner.logprobs(samples)
    assert all(not kl.any() for kl in learner.reference_kl(samples, 1.0, "k3"))
    learner.update(samples)
    learner.save_checkpoint(tmp_path / "saved")
    resumed = Learner(model_folder, config, seed=1)
    resumed.load_checkpoint(tmp_path / "saved")
    for one in (learner, resumed):
        moved = one.logprobs(samples)
        for reference, expected in zip(one.logprobs(samples, reference=True), start, strict=True):
            np.testing.assert_allclose(reference, expected, atol=1e-6)
        assert any(np.abs(m - s).max() > 1e-3 for m, s in zip(moved, start, strict=True))
        assert all(np.array_equal(a, b) for a, b in zip(one.logprobs(samples), moved, strict=True))  # put back exactly


def test_a_reference_in_the_precision_that_is_computed_in_says_the_same(
    model_folder: Path, make_samples: MakeSamples
) -> None:
    samples = make_samples(5)
    learner = Learner(model_folder, LearnerConfig(compute_dtype="bfloat16"), seed=0)
    learner.begin_phase(WARM)
    learner.update(samples)
    learner.begin_phase(KL)
    assert {weight.dtype for weight in learner._reference.weights().values()} == {torch.bfloat16}
    for ours, theirs in zip(learner.logprobs(samples), learner.logprobs(samples, reference=True), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_critic_starts_from_the_policy_with_its_adapters(model_folder: Path, make_samples: MakeSamples) -> None:
    learner = Learner(model_folder, LORA, seed=0)
    learner.begin_phase(WARM)
    learner.update(make_samples(4))
    learner.begin_phase(Phase(FAST, LossConfig(), 10, advantage=AdvantageConfig(name="gae")))
    assert learner._critic is not None
    policy = dict(learner.named_weights())
    for name, weight in learner._critic._model.weights.items():
        if name != "lm_head.weight":
            assert torch.equal(weight.full_tensor(), policy[name]), name


def test_what_kl_in_the_reward_has_scored_is_not_scored_again(
    model_folder: Path, make_samples: MakeSamples, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = make_samples(6)
    plain, thrifty = (Learner(model_folder, LearnerConfig(), seed=0) for _ in range(2))
    for learner in (plain, thrifty):
        learner.begin_phase(Phase(FAST, LossConfig(kl_coefficient=0.1), 10, 2))
    calls = count_forwards(thrifty, monkeypatch)
    thrifty.reference_kl(samples, 1.0, "k1")
    assert thrifty.update(samples[:5]) == pytest.approx(plain.update(samples[:5]))
    assert calls == [6, 6]  # the policy and its reference, once each
    thrifty.logprobs(samples)
    assert calls == [6, 6, 6]  # the weights have moved


def test_what_rests_is_written_once_and_linked_from_then_on(
    model_folder: Path, make_samples: MakeSamples, tmp_path: Path
) -> None:
    learner = Learner(model_folder, LearnerConfig(), seed=0)
    learner.begin_phase(KL)
    learner.save_checkpoint(tmp_path / "first")
    assert not (tmp_path / "first" / "still").exists()  # the model's folder has it
    learner.begin_phase(KL)  # what was trained before is in no file now
    learner.update(make_samples(3))
    learner.save_checkpoint(tmp_path / "a", previous=tmp_path / "first")
    learner.save_checkpoint(tmp_path / "b", previous=tmp_path / "a")
    files = [path.relative_to(tmp_path / "a") for path in (tmp_path / "a" / "still").iterdir()]
    assert all((tmp_path / "a" / name).samefile(tmp_path / "b" / name) for name in files)
    assert not (tmp_path / "a" / "policy" / ".metadata").samefile(tmp_path / "b" / "policy" / ".metadata")
    resumed = Learner(model_folder, LearnerConfig(), seed=0)
    resumed.load_checkpoint(tmp_path / "b")
    assert resumed.update(make_samples(3)) == learner.update(make_samples(3))


def test_recorded_answers_meet_the_prompts_of_others_for_ktos_point(make_samples: MakeSamples) -> None:
    samples = [replace(s, rollout_logprobs=np.zeros(len(s), np.float32)) for s in make_samples(4, longest=20)]
    pairs = mismatched(samples, 1000)
    assert len(pairs) == 4
    for here, there, pair in zip(samples, [*samples[1:], samples[0]], pairs, strict=True):
        begin, end = int(here.policy_mask.argmax()), int(there.policy_mask.argmax())
        assert pair.token_ids[:begin].tolist() == here.token_ids[:begin].tolist()
        assert pair.token_ids[begin:].tolist() == there.token_ids[end:].tolist()
        assert pair.num_policy_tokens == there.num_policy_tokens
        assert not pair.policy_mask[:begin].any()
    assert mismatched(samples[:1], 1000) == []
    assert mismatched(samples, 1) == []


def test_the_logprob_of_a_spliced_continuation_is_that_of_its_tokens(
    model_folder: Path, make_samples: MakeSamples
) -> None:
    sample = make_samples(1, longest=30)[0]
    cut = 1 + len(sample) // 2
    spliced = splice(sample.token_ids[:cut], sample.token_ids[cut:])
    learner = Learner(model_folder, LearnerConfig(), seed=0)
    everything = replace(sample, policy_mask=np.arange(len(sample)) > 0)
    whole, part = learner.logprobs([everything, spliced])
    np.testing.assert_allclose(part[cut:], whole[cut:], atol=1e-6)
    assert not part[:cut].any()
    with pytest.raises(ValueError, match="both need some"):
        splice(sample.token_ids, sample.token_ids[:0])
