"""The LM head agrees with full logits in value and gradient, in one chunk or many."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from verl.learner import logprobs
from verl.learner.logprobs import policy_logprobs, top_logprobs


def reference(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logp = torch.log_softmax(hidden @ weight.t() / temperature, dim=-1)
    return logp.gather(1, targets[:, None]).squeeze(1), -(logp.exp() * logp).sum(-1)


@pytest.fixture
def head() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(13, 8, dtype=torch.float64, generator=generator)
    weight = torch.randn(29, 8, dtype=torch.float64, generator=generator)
    return hidden, weight, torch.randint(0, 29, (13,), generator=generator)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("rows_of_budget", [1, 16, 25, 26, 200])
def test_values_and_gradients_equal_full_logits(
    head: tuple[Tensor, Tensor, Tensor], temperature: float, rows_of_budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprobs, "_MIB", rows_of_budget * 29 * 8)
    hidden, weight, targets = head
    weights = torch.linspace(-1, 2, 13, dtype=torch.float64)
    grads = []
    for compute in (reference, policy_logprobs):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        extra: dict[str, Any] = {} if compute is reference else {"entropy_gradient": True, "max_logits_mib": 1}
        logp, entropy = compute(h, w, targets, temperature=temperature, **extra)
        ((logp * weights).sum() + (entropy.square() * weights).sum()).backward()
        grads.append((logp.detach(), entropy.detach(), h.grad, w.grad))
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_entropy_has_no_gradient_unless_asked_for(head: tuple[Tensor, Tensor, Tensor]) -> None:
    hidden, weight, targets = head
    logp, entropy = policy_logprobs(hidden.requires_grad_(), weight, targets)
    assert logp.requires_grad
    assert not entropy.requires_grad


def test_no_policy_token_gives_zero_gradients_and_not_none(head: tuple[Tensor, Tensor, Tensor]) -> None:
    hidden, weight, targets = head
    hidden, weight = hidden.requires_grad_(), weight.requires_grad_()
    logp, _ = policy_logprobs(hidden[:0], weight, targets[:0])
    logp.sum().backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    assert not weight.grad.any()


def test_very_unlikely_target_stays_finite() -> None:
    weight = torch.tensor([[1.0], [-1.0]])
    logp, entropy = policy_logprobs(torch.tensor([[100.0]]), weight, torch.tensor([1]))
    assert logp.item() == pytest.approx(-200.0)
    assert entropy.item() == pytest.approx(0.0, abs=1e-5)


def test_top_tokens_are_sorted_and_normalised(head: tuple[Tensor, Tensor, Tensor]) -> None:
    hidden, weight, _ = head
    values, ids = top_logprobs(hidden, weight, 29)
    assert torch.equal(values, values.sort(dim=-1, descending=True).values)
    torch.testing.assert_close(values.exp().sum(-1), torch.ones(13, dtype=torch.float64))
    torch.testing.assert_close(values, reference(hidden, weight, ids[:, 0], 1.0)[0][:, None] + values - values[:, :1])


def test_the_heads_gradient_is_summed_in_full_over_chunks() -> None:
    """In half precision the rounding of a sum grows with the number of chunks, unless the sum is kept in full."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2048, 64, generator=generator).bfloat16()
    weight = (torch.randn(4096, 64, generator=generator) / 8).bfloat16()
    targets = torch.randint(0, 4096, (2048,), generator=generator)

    def gradient(hidden: torch.Tensor, weight: torch.Tensor, mib: int) -> torch.Tensor:
        head = weight.clone().requires_grad_()
        policy_logprobs(hidden, head, targets, max_logits_mib=mib)[0].sum().backward()
        assert head.grad is not None
        return head.grad.double()

    exact = gradient(hidden.double(), weight.double(), 1000)
    errors = [float((gradient(hidden, weight, mib) - exact).norm() / exact.norm()) for mib in (1000, 1)]
    assert errors[1] < 1.6 * errors[0]  # 49 chunks


@pytest.mark.parametrize("mib", [1000, 1])
def test_logits_of_half_precision_are_rounded_only_where_asked_for(mib: int) -> None:
    """Against float64 on the same bfloat16 numbers; the gradient is as good as with rounded logits, or better."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(512, 64, generator=generator).bfloat16()
    weight = torch.randn(4096, 64, generator=generator).bfloat16()
    targets = torch.randint(0, 4096, (512,), generator=generator)

    def values(hidden: Tensor, weight: Tensor, full: bool) -> tuple[Tensor, ...]:
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        logp, entropy = policy_logprobs(h, w, targets, max_logits_mib=mib, temperature=0.7, full=full)
        logp.sum().backward()
        assert h.grad is not None
        assert w.grad is not None
        return logp.detach().double(), entropy.double(), h.grad.double(), w.grad.double()

    def errors(found: tuple[Tensor, ...]) -> list[float]:
        return [float((a - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)]

    exact = values(hidden.double(), weight.double(), True)
    full, rounded = (errors(values(hidden, weight, full)) for full in (True, False))
    assert full[0] < 1e-6 < 1e-4 < rounded[0]
    assert full[1] < rounded[1] / 10
    assert full[2] < rounded[2]
    assert full[3] < rounded[3]


def test_a_gpu_is_given_half_precision_and_writes_float32() -> None:
    """No card is needed to see which operator is called: these tensors have a device and no memory."""
    with FakeTensorMode(), torch.no_grad():
        hidden, weight = (torch.empty(rows, 16, device="cuda", dtype=torch.bfloat16) for rows in (8, 50))
        with _Calls() as calls:
            values, ids = top_logprobs(hidden, weight, 3)
        assert values.dtype == torch.float32
        assert values.shape == ids.shape == (8, 3)
    assert [name for name in calls.names if "mm" in name] == ["aten.mm.dtype"]
    assert not any("copy" in name for name in calls.names)


class _Calls(TorchDispatchMode):
    """The operators that were called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_log_probs_of_large_logits_lose_no_more_than_the_logits_did() -> None:
    """One-hot states make the logits exact: what is off float64 is the log-softmax alone."""
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(2000, 32, generator=generator) * 3 + 500).t().contiguous()
    targets = logits.argsort(1, descending=True)[:, :8]
    for column in targets.t():
        logp, entropy = policy_logprobs(torch.eye(32), logits.t(), column)
        exact = torch.log_softmax(logits.double(), dim=-1)
        assert (logp - exact.gather(1, column[:, None]).squeeze(1)).abs().max() < 2e-6
        assert (entropy + (exact.exp() * exact).sum(1)).abs().max() < 2e-4
