"""Keys: what is refused, what null means, and that configuration imports no torch."""

from __future__ import annotations

import ast
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Literal

import pytest

import verl.algorithms
from verl.algorithms.config import (
    AdvantageConfig,
    CorrectionConfig,
    GuardConfig,
    LossConfig,
    TurnCreditConfig,
    ValueLossConfig,
)
from verl.algorithms.control_config import AlarmConfig, DynamicSamplingConfig, KlRewardConfig, OverlongConfig
from verl.errors import UserError

PACKAGE = Path(verl.algorithms.__file__).parent


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: AdvantageConfig(epsilon=0), "advantage.epsilon"),
        (lambda: AdvantageConfig(k=1), "advantage.k"),
        (lambda: AdvantageConfig(gamma=1.1), "advantage.gamma"),
        (lambda: AdvantageConfig(lam=-0.1), "advantage.lam"),
        (lambda: LossConfig(clip_low=1.5), "loss.clip_low"),
        (lambda: LossConfig(clip_high=0), "loss.clip_high"),
        (lambda: LossConfig(dual_clip=1.0), "loss.dual_clip"),
        (lambda: LossConfig(sapo_temperature_negative=0), "loss.sapo_temperature_negative"),
        (lambda: LossConfig(kto_beta=0), "loss.kto_beta"),
        (lambda: LossConfig(kl_coefficient=-1), "loss.kl_coefficient"),
        (lambda: LossConfig(entropy_coefficient=-1), "loss.entropy_coefficient"),
        (lambda: LossConfig(name="gmpo", aggregation="token-mean"), "loss.aggregation"),
        (lambda: LossConfig(aggregation="token-sum-constant"), "loss.constant_tokens"),
        (lambda: LossConfig(constant_tokens=10), "loss.constant_tokens"),
        (lambda: LossConfig(aggregation="token-sum-constant", constant_tokens=0), "loss.constant_tokens"),
        (lambda: CorrectionConfig(high=0.5), "loss.correction.high"),
        (lambda: CorrectionConfig(low=2.0), "loss.correction.low"),
        (lambda: CorrectionConfig(reject_mean_above=0), "loss.correction.reject_mean_above"),
        (lambda: CorrectionConfig(reject_max_above=-1), "loss.correction.reject_max_above"),
        (lambda: LossConfig(off_policy_mask=0), "loss.off_policy_mask"),
        (lambda: AdvantageConfig("gdpo"), "advantage.parts"),
        (lambda: AdvantageConfig("grpo", parts={"em": 1.0}), "advantage.parts"),
        (lambda: AdvantageConfig("gdpo", parts={"em": 0.0}), "advantage.parts.em"),
        (lambda: GuardConfig(coefficient=-0.2), "loss.guard.coefficient"),
        (lambda: ValueLossConfig(clip=0), "clip"),
        (lambda: TurnCreditConfig(coefficient=-1), "turn_credit.coefficient"),
        (lambda: TurnCreditConfig(gamma=2), "turn_credit.gamma"),
        (lambda: KlRewardConfig(target=0), "kl_reward.target"),
        (lambda: DynamicSamplingConfig(max_refills=-1), "dynamic_sampling.max_refills"),
        (lambda: OverlongConfig(buffer_tokens=-1), "overlong.buffer_tokens"),
        (lambda: AlarmConfig(patience_steps=0), "alarms.patience_steps"),
        (lambda: AlarmConfig(entropy_below=9), "alarms.entropy_below"),
    ],
)
def test_a_bad_value_names_its_key_in_one_line(make: Callable[[], object], key: str) -> None:
    with pytest.raises(UserError) as caught:
        make()
    assert str(caught.value).startswith((f"{key}=", f"{key.rpartition('.')[2]}="))  # whose it is, its group adds
    assert "\n" not in str(caught.value)


def test_null_means_the_published_value() -> None:
    assert LossConfig().clip == (0.2, 0.2)
    assert LossConfig(clip_high=0.28).clip == (0.2, 0.28)
    assert LossConfig(name="gspo").clip == (3e-4, 4e-4)
    assert LossConfig(name="gspo", clip_low=0.1).clip == (0.1, 4e-4)
    assert LossConfig().reduction == "token-mean"
    for name in ("sapo", "gspo", "gmpo", "kto"):
        assert LossConfig(name=name).reduction == "sequence-mean-token-mean"
    assert LossConfig(name="sapo", aggregation="token-mean").reduction == "token-mean"


def test_what_a_loss_needs() -> None:
    assert not LossConfig().needs_reference
    assert LossConfig(name="kto").needs_reference
    assert LossConfig(kl_coefficient=0.001).needs_reference
    assert not LossConfig(guard=GuardConfig(coefficient=0.2)).needs_rollout
    assert LossConfig(guard=GuardConfig(coefficient=0.2, anchor="rollout")).needs_rollout
    assert LossConfig(correction=CorrectionConfig(mode="band")).needs_rollout
    assert LossConfig(correction=CorrectionConfig(reject_max_above=1.0)).needs_rollout
    assert LossConfig(off_policy_mask=0.1).needs_rollout


def test_groups_that_give_no_signal_are_refused() -> None:
    with pytest.raises(UserError, match=r"^samples_per_prompt=1: grpo compares"):
        AdvantageConfig("grpo").check_group_size(1)
    with pytest.raises(UserError, match=r"^advantage\.k=9: write at most samples_per_prompt=8"):
        AdvantageConfig("pass_at_k", k=9).check_group_size(8)
    AdvantageConfig("reinforce_pp").check_group_size(1)
    AdvantageConfig("pass_at_k").check_group_size(2)


@pytest.mark.parametrize(
    ("anchor", "updates", "staleness", "refused"),
    [("old", 1, 0, True), ("old", 1, 2, True), ("old", 2, 0, False), ("rollout", 1, 0, True), ("rollout", 1, 1, False)],
)
def test_an_inert_guard_is_refused(
    anchor: Literal["old", "rollout"], updates: int, staleness: int, refused: bool
) -> None:
    LossConfig().check_effect(updates, staleness)
    config = LossConfig(guard=GuardConfig(coefficient=0.2, anchor=anchor))
    with pytest.raises(UserError, match=r"loss\.guard") if refused else nullcontext():
        config.check_effect(updates, staleness)


def imported(path: Path) -> set[str]:
    """Top-level names of the packages that a module imports."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return plain | {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}


def test_the_package_imports_torch_alone_and_its_configuration_not_even_that() -> None:
    allowed = {"torch", "verl.errors", "__future__", "collections.abc", "dataclasses", "typing", "math"}
    for path in PACKAGE.glob("*.py"):
        foreign = {name for name in imported(path) if name not in allowed and not name.startswith("verl.algorithms")}
        assert not foreign, f"{path.name} imports {foreign}"
        if path.stem in ("config", "control_config", "__init__"):
            assert "torch" not in imported(path)


def test_the_correction_switches_on_with_staleness_unless_one_is_chosen() -> None:
    assert LossConfig().for_staleness(0).correction.mode == "none"
    assert LossConfig().for_staleness(2).correction.mode == "truncate"
    for mode in ("none", "band"):
        chosen = LossConfig(correction=CorrectionConfig(mode=mode))
        assert chosen.for_staleness(2) == chosen
    assert LossConfig().for_staleness(1).needs_rollout
