"""The learner on one rank: exact scores, steps that do not depend on packing, phases, guards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from verl.algorithms.config import AdvantageConfig, GuardConfig, LossConfig
from verl.data.samples import TrainingSample
from verl.errors import UserError
from verl.learner.config import LearnerConfig, LoraConfig, OptimizerConfig
from verl.learner.learner import Learner
from verl.learner.memory import taken_bytes
from verl.learner.model import PackedModel
from verl.learner.nonfinite import NonFiniteError
from verl.learner.parts import decoder_of
from verl.learner.phase import Phase
from verl.model_shape import read_shape

MakeSamples = Callable[..., list[TrainingSample]]
EXACT = LearnerConfig(parameter_dtype="float64", compute_dtype="float64")


def started(folder: Path, config: LearnerConfig = EXACT, loss: LossConfig | None = None) -> Learner:
    learner = Learner(folder, config, seed=0)
    learner.begin_phase(Phase(OptimizerConfig(learning_rate=1e-3), loss or LossConfig(), 10, config.updates_per_batch))
    return learner


def weights(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in learner.named_weights(torch.float64)}


def hf_logprobs(folder: Path, sample: TrainingSample, temperature: float) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    ids = torch.as_tensor(sample.token_ids, dtype=torch.int64)
    logp = torch.log_softmax(model(ids[None]).logits[0] / temperature, dim=-1)
    scores = torch.zeros(len(ids), dtype=torch.float64)
    scores[1:] = logp[:-1].gather(1, ids[1:, None]).squeeze(1)
    return scores * torch.as_tensor(sample.policy_mask)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("kind", ["model_folder", "untied_folder"])
def test_logprobs_equal_the_hugging_face_forward(
    kind: str, temperature: float, make_samples: MakeSamples, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(kind)
    samples = make_samples(9)
    scores = started(folder, replace(EXACT, max_tokens_per_microbatch=64)).logprobs(samples, temperature)
    for sample, ours in zip(samples, scores, strict=True):
        expected = hf_logprobs(folder, sample, temperature).detach().float().numpy()
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "loss",
    [
        LossConfig(),
        LossConfig(name="weighted_nll"),
        LossConfig(name="gspo", entropy_coefficient=0.01),
        LossConfig(aggregation="sequence-mean-token-sum", kl_coefficient=0.1),
    ],
    ids=lambda loss: f"{loss.name}-{loss.reduction}",
)
@pytest.mark.parametrize(("compute", "tolerance"), [("float64", 1e-9), ("float32", 1e-5)])
def test_a_step_does_not_depend_on_the_split_into_microbatches(
    loss: LossConfig,
    compute: Literal["float64", "float32"],
    tolerance: float,
    model_folder: Path,
    make_samples: MakeSamples,
) -> None:
    samples = make_samples(12)
    results = []
    for cap in (40, 100, 4096):
        config = LearnerConfig(parameter_dtype=compute, compute_dtype=compute, max_tokens_per_microbatch=cap)
        learner = started(model_folder, config, loss)
        results.append(learner.update(samples, 0.8))
    for result in results[1:]:
        for key in ("loss", "grad_norm", "entropy", "logprob_diff_mean"):
            assert result[key] == pytest.approx(results[0][key], rel=tolerance), key


def test_recomputed_layers_and_chunked_logits_give_the_same_step(model_folder: Path, make_samples: MakeSamples) -> None:
    plain = started(model_folder).update(make_samples(6))
    thrifty = started(model_folder, replace(EXACT, gradient_checkpointing=True)).update(make_samples(6))
    assert thrifty["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-9)


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4)], ids=["all", "lora"])
def test_any_number_of_recomputed_layers_gives_the_same_weights_bit_for_bit(
    lora: LoraConfig | None, model_folder: Path, make_samples: MakeSamples
) -> None:
    def trained(recomputed: Literal["auto"] | int) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
        config = LearnerConfig(gradient_checkpointing=recomputed, lora=lora, max_tokens_per_microbatch=64)
        learner = started(model_folder, config)
        metrics = [learner.update(make_samples(8, seed)) for seed in range(3)]
        return metrics[-1], {name: weight.clone() for name, weight in learner.named_weights()}

    metrics, expected = trained("auto")  # on a CPU none
    for recomputed in (False, 0, 1, 2, True):
        ours = trained(recomputed)
        assert ours[0] == metrics
        assert all(torch.equal(ours[1][name], weight) for name, weight in expected.items())


def recomputing(model: PackedModel) -> list[bool]:
    return [layer.gradient_checkpointing for layer in decoder_of(model.lm).layers]


def test_a_rank_without_a_plan_recomputes_what_its_card_needs_in_each_phase(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = LearnerConfig(max_tokens_per_microbatch=1 << 16, max_logits_mib=1)
    plain = Phase(batches=2)
    ppo = replace(plain, advantage=AdvantageConfig(name="gae"))
    shape = read_shape(str(model_folder))

    def most(phase: Phase, layers: int) -> int:
        told = replace(config, gradient_checkpointing=layers)
        return sum(taken_bytes(told, shape, phase, 1, on_gpu=True).values())

    monkeypatch.setattr("verl.learner.learner.card_room", lambda layout: most(plain, 0))
    assert most(ppo, 0) > most(plain, 0) > most(ppo, 1)
    learner = Learner(model_folder, config, seed=0)
    learner.begin_phase(plain)
    assert recomputing(learner.model) == [False, False]
    learner.begin_phase(ppo)
    assert learner._critic is not None
    assert recomputing(learner.model) == recomputing(learner._critic._model) == [True, False]
    learner.begin_phase(plain)
    assert recomputing(learner.model) == [False, False]


def kept_bytes(learner: Learner, samples: list[TrainingSample]) -> int:
    """Of activations that an update keeps for its backward pass, each storage once."""
    kept: dict[int, int] = {}
    held: list[torch.Tensor] = []  # so that no address comes twice

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            held.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        learner.update(samples)
    return sum(kept.values())


def test_layers_that_are_recomputed_keep_their_input_alone(model_folder: Path, make_samples: MakeSamples) -> None:
    samples = make_samples(6)
    plain = kept_bytes(started(model_folder), samples)
    assert kept_bytes(started(model_folder, replace(EXACT, gradient_checkpointing=True)), samples) < plain / 3


def test_half_precision_computes_nearly_the_same_step(model_folder: Path, make_samples: MakeSamples) -> None:
    samples = make_samples(8)
    whole = started(model_folder, LearnerConfig())
    half = started(model_folder, LearnerConfig(compute_dtype="bfloat16"))
    expected, ours = whole.update(samples), half.update(samples)
    assert ours["grad_norm"] == pytest.approx(expected["grad_norm"], rel=0.05)
    assert ours["entropy"] == pytest.approx(expected["entropy"], rel=0.01)
    assert all(weight.dtype == torch.float32 for _, weight in half.named_weights())  # what the optimizer holds


def test_more_updates_a_batch_take_more_steps_from_the_same_old_logprobs(
    model_folder: Path, make_samples: MakeSamples
) -> None:
    samples = make_samples(8)
    one, four = started(model_folder), started(model_folder, replace(EXACT, updates_per_batch=4))
    single, several = one.update(samples), four.update(samples)
    assert single["kl_old"] == 0.0
    assert several["kl_old"] > 0.0
    assert several["num_policy_tokens"] == single["num_policy_tokens"]
    assert several["logprob_diff_max"] == pytest.approx(single["logprob_diff_max"], rel=1e-5)


def test_recorded_traces_have_no_rollout_to_compare_with(model_folder: Path, make_samples: MakeSamples) -> None:
    traces = [replace(s, rollout_logprobs=np.zeros(len(s), np.float32)) for s in make_samples(3)]
    metrics = started(model_folder, loss=LossConfig(name="weighted_nll")).update(traces)
    assert "logprob_diff_max" not in metrics


def test_a_new_phase_starts_a_fresh_schedule_and_keeps_the_weights(
    model_folder: Path, make_samples: MakeSamples
) -> None:
    learner = started(model_folder)
    learner.update(make_samples(3))
    before = learner.weights_hash()
    learner.begin_phase(Phase(OptimizerConfig(learning_rate=1e-2, warmup_steps=4), LossConfig(), 8))
    assert learner.weights_hash() == before
    rates = [learner.update(make_samples(3))["learning_rate"] for _ in range(2)]
    assert rates == pytest.approx([2.5e-3, 5e-3])


def test_reference_stays_where_the_phase_began(model_folder: Path, make_samples: MakeSamples) -> None:
    samples = make_samples(4)
    learner = started(model_folder, loss=LossConfig(kl_coefficient=0.1))
    at_start = learner.logprobs(samples)
    first, second = learner.update(samples), learner.update(samples)
    # The old log-probs pass through float32 columns: zero up to their rounding.
    assert first["kl_reference"] == pytest.approx(0.0, abs=1e-9)
    assert second["kl_reference"] > 1e-6
    for ours, expected in zip(learner.logprobs(samples, reference=True), at_start, strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_reference_is_refused_where_the_phase_has_none(model_folder: Path, make_samples: MakeSamples) -> None:
    with pytest.raises(ValueError, match="no reference"):
        started(model_folder).logprobs(make_samples(1), reference=True)


def test_guard_against_displacement_sees_turns(model_folder: Path, make_samples: MakeSamples) -> None:
    loss = LossConfig(guard=GuardConfig(coefficient=0.5, anchor="rollout"))
    metrics = started(model_folder, loss=loss).update(make_samples(6))
    assert metrics["guard_fraction"] > 0


def poisoned(samples: Sequence[TrainingSample]) -> list[TrainingSample]:
    first = samples[0]
    bad = np.where(first.policy_mask, np.nan, 0).astype(np.float32)
    return [replace(first, advantages=bad), *samples[1:]]


def test_a_nan_skips_the_step_keeps_the_batch_and_stops_after_a_bound(
    model_folder: Path, make_samples: MakeSamples, tmp_path: Path
) -> None:
    samples = make_samples(3)
    config = replace(EXACT, max_skipped_steps=1)
    learner = Learner(model_folder, config, seed=0, rejected_folder=tmp_path / "rejected")
    learner.begin_phase(Phase(OptimizerConfig(), LossConfig(), 10))
    before = learner.weights_hash()
    assert learner.update(poisoned(samples))["skipped_steps"] == 1
    assert learner.weights_hash() == before
    kept = np.load(tmp_path / "rejected" / "nonfinite_step_0.npz")
    assert kept["lengths"].tolist() == [len(sample) for sample in samples]
    assert learner.update(samples)["skipped_steps"] == 1
    assert learner.weights_hash() != before
    learner.update(poisoned(samples))
    with pytest.raises(NonFiniteError, match="max_skipped_steps=1"):
        learner.update(poisoned(samples))


def test_gradient_is_clipped_to_its_bound(model_folder: Path, make_samples: MakeSamples) -> None:
    # Adam moves by the learning rate whatever the gradient's size, unless that is far below its epsilon of 1e-8.
    tiny, plain = (OptimizerConfig(learning_rate=1e-3, weight_decay=0.0, grad_clip=clip) for clip in (1e-12, 1.0))
    moved = []
    for optimizer in (tiny, plain):
        learner = Learner(model_folder, EXACT, seed=0)
        learner.begin_phase(Phase(optimizer, LossConfig(), 10))
        before = weights(learner)
        assert learner.update(make_samples(4))["grad_norm"] > 1e-2
        moved.append(max(float((new - before[name]).abs().max()) for name, new in weights(learner).items()))
    assert 0 < moved[0] < 1e-6
    assert moved[1] == pytest.approx(1e-3, rel=1e-2)


def test_nothing_to_train_on_and_too_long_sequences_are_refused(model_folder: Path, make_samples: MakeSamples) -> None:
    learner = started(model_folder, replace(EXACT, max_tokens_per_microbatch=8))
    with pytest.raises(ValueError, match="nothing to train on"):
        learner.update([])
    with pytest.raises(UserError, match="a micro-batch holds 8"):
        learner.update(make_samples(3, longest=40))


def test_training_before_a_phase_is_refused(model_folder: Path, make_samples: MakeSamples) -> None:
    with pytest.raises(ValueError, match="begin_phase"):
        Learner(model_folder, EXACT, seed=0).update(make_samples(1))


def test_a_folder_without_a_model_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        Learner(tmp_path, EXACT, seed=0)


def test_the_kl_to_the_reference_is_that_of_the_policy_tokens(model_folder: Path, make_samples: MakeSamples) -> None:
    learner = Learner(model_folder, LearnerConfig(), seed=0)
    learner.begin_phase(Phase(OptimizerConfig(learning_rate=1e-2), LossConfig(), 10, keep_reference=True))
    samples = make_samples(4)
    assert all(not kl.any() for kl in learner.reference_kl(samples, 1.0, "k3"))
    learner.update(samples)
    for sample, kl in zip(samples, learner.reference_kl(samples, 1.0, "k3"), strict=True):
        assert kl[sample.policy_mask].min() > 0
        assert not kl[~sample.policy_mask].any()


def test_kto_measures_its_reference_point_on_the_whole_batch(model_folder: Path, make_samples: MakeSamples) -> None:
    """Small caps split the batch into micro-batches; the point, and with it the loss, must be the same."""
    losses = []
    for cap in (40, 400):
        learner = Learner(model_folder, LearnerConfig(max_tokens_per_microbatch=cap), seed=0)
        learner.begin_phase(Phase(OptimizerConfig(learning_rate=1e-2), LossConfig(name="kto"), 10))
        learner.update(make_samples(6, seed=1))
        metrics = learner.update(make_samples(6, seed=2))
        losses.append(metrics["loss"])
        assert metrics["kto_reward_margin"] != 0
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
