"""Learning rates, decay groups, and the global norm of a gradient."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, distribute_tensor

from verl.errors import UserError
from verl.learner.config import LearnerConfig, LoraConfig, OptimizerConfig
from verl.learner.optimizer import global_grad_norm, learning_rate, make_optimizer, scale_gradients, set_rate


@pytest.fixture
def mesh() -> DeviceMesh:
    return init_device_mesh("cpu", (dist.get_world_size(),))


def parameter(values: list[float], grad: list[float], mesh: DeviceMesh) -> DTensor:
    made = torch.nn.Parameter(distribute_tensor(torch.tensor(values), mesh))
    made.grad = distribute_tensor(torch.tensor(grad), mesh)
    assert isinstance(made, DTensor)
    return made


def test_linear_schedule_by_hand() -> None:
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=2, schedule="linear", final_lr_fraction=0.2)
    rates = [learning_rate(config, step, 6) for step in range(7)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2])


def test_cosine_schedule_by_hand() -> None:
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=1, schedule="cosine", final_lr_fraction=0.2)
    rates = [learning_rate(config, step, 5) for step in range(6)]
    assert rates == pytest.approx([1.0, 1.0, 0.2 + 0.8 * (2 + 2**0.5) / 4, 0.6, 0.2 + 0.8 * (2 - 2**0.5) / 4, 0.2])


@given(st.integers(0, 50), st.integers(1, 200), st.integers(0, 300), st.floats(0, 1))
def test_rates_stay_between_zero_and_the_peak(warmup: int, total: int, step: int, final: float) -> None:
    for schedule in ("constant", "linear", "cosine"):
        config = OptimizerConfig(0.1, warmup_steps=warmup, schedule=schedule, final_lr_fraction=final)  # type: ignore[arg-type]
        assert 0 <= learning_rate(config, step, total) <= 0.1 + 1e-12


def test_only_matrices_decay(mesh: DeviceMesh) -> None:
    matrix = torch.nn.Parameter(distribute_tensor(torch.ones(2, 2), mesh))
    vector = torch.nn.Parameter(distribute_tensor(torch.ones(2), mesh))
    for weight in (matrix, vector):
        weight.grad = distribute_tensor(torch.zeros(weight.shape), mesh)
    make_optimizer(OptimizerConfig(learning_rate=0.1, weight_decay=0.5), [matrix, vector]).step()  # type: ignore[list-item]
    assert matrix.full_tensor().tolist() == [[pytest.approx(0.95)] * 2] * 2  # type: ignore[attr-defined]
    assert vector.full_tensor().tolist() == [1.0, 1.0]  # type: ignore[attr-defined]


def test_norm_is_that_of_all_gradients_together_and_scaling_is_in_place(mesh: DeviceMesh) -> None:
    weights = [parameter([0.0, 0.0], [3.0, 0.0], mesh), parameter([0.0], [4.0], mesh)]
    assert global_grad_norm(weights).item() == pytest.approx(5.0)
    scale_gradients(weights, 0.5)
    assert global_grad_norm(weights).item() == pytest.approx(2.5)


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: OptimizerConfig(learning_rate=0.0), "learning_rate"),
        (lambda: OptimizerConfig(betas=(0.9, 1.0)), "betas"),
        (lambda: OptimizerConfig(grad_clip=0.0), "grad_clip"),
        (lambda: LearnerConfig(max_tokens_per_microbatch=0), "max_tokens_per_microbatch"),
        (lambda: LearnerConfig(sequence_ranks=0), "sequence_ranks"),
        (lambda: LoraConfig(rank=0), "^rank=0"),
    ],
)
def test_impossible_values_are_refused_by_key(make: object, key: str) -> None:
    with pytest.raises(UserError, match=key):
        make()  # type: ignore[operator]


def test_lora_plus_moves_some_matrices_faster(mesh: DeviceMesh) -> None:
    plain, quick = parameter([0.0], [1.0], mesh), parameter([0.0], [1.0], mesh)
    optimizer = make_optimizer(OptimizerConfig(weight_decay=0.0), [plain], [quick], 16.0)
    for rate in (0.5, 0.25):
        set_rate(optimizer, rate)
        assert [group["lr"] for group in optimizer.param_groups if group["params"]] == [rate, 16 * rate]
    optimizer.step()
    assert quick.full_tensor().item() == pytest.approx(16 * plain.full_tensor().item())


def test_without_a_ratio_all_weights_have_one_rate(mesh: DeviceMesh) -> None:
    optimizer = make_optimizer(OptimizerConfig(), [parameter([0.0], [1.0], mesh)])
    set_rate(optimizer, 0.5)
    assert {group["lr"] for group in optimizer.param_groups} == {0.5}
