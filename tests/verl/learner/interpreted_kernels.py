"""What ``test_kernels`` runs in a process of its own, whose Triton interprets: there kernels run on a CPU."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu
from transformers import Qwen2Config
from transformers.models.qwen2 import modeling_qwen2
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention, Qwen2RMSNorm

from verl.learner import fused, gated, joint, kernels, logprobs, rotary
from verl.learner.attention import PACKED, AttentionLayout
from verl.learner.logprobs import policy_logprobs


@pytest.fixture(autouse=True)
def taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are taken for all but float64."""
    torch.manual_seed(0)
    for module in (fused, gated, logprobs, rotary):
        monkeypatch.setattr(module, "kernels_for", lambda x: None if x.dtype == torch.float64 else kernels)


def both(call: Any, inputs: list[Tensor], outside: tuple[Any, ...] = ()) -> Any:
    """Results and gradients by the kernels, in float32, and by the operators, in float64."""
    found = []
    for dtype in (torch.float32, torch.float64):
        given = [x.detach().clone().to(dtype).requires_grad_() for x in inputs]
        outs = call(*given, *outside)
        sum((out * torch.linspace(-1, 2, out.numel()).view_as(out)).sum() for out in outs).backward()
        found.append([*outs, *(x.grad for x in given)])
    return zip(*found, strict=True)


def assert_near(pairs: Any) -> None:
    for ours, exact in pairs:
        torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-5)


def test_a_turn() -> None:
    angles = torch.rand(1, 5, 3).repeat(1, 1, 2)
    states = [torch.randn(1, heads, 5, 6) for heads in (3, 1)]
    assert_near(both(lambda q, k: rotary.rotate(q, k, angles.cos().to(q.dtype), angles.sin().to(q.dtype)), states))


def test_a_norm() -> None:
    assert_near(both(lambda x, w: [fused._Norm.apply(x, w, 0.1)], [torch.randn(2, 5, 24), torch.rand(24)]))


def test_half_precision_is_rounded_where_vllm_rounds() -> None:
    """Otherwise rollout and learner drift apart, layer by layer: norms and gates as the model's own code has it."""
    half = torch.float16  # the interpreter cuts bfloat16 off and does not round it
    gate, up = (torch.randn(64, 48).to(half) * 3 for _ in range(2))
    assert torch.equal(kernels.gated(gate, up), silu(gate) * up)
    own = Qwen2RMSNorm(48, eps=1e-6).to(half)
    own.weight.data.uniform_()
    # Roots of another last digit are rounded alike but for one in thousands.
    assert (kernels.norm(gate, own.weight, 1e-6)[0] == own(gate)).float().mean() > 0.995
    angles = torch.rand(1, 64, 4).repeat(1, 1, 2)
    q, k = (torch.randn(1, heads, 64, 8).to(half) for heads in (4, 2))
    cos, sin = angles.cos().to(half), angles.sin().to(half)
    exact = modeling_qwen2.apply_rotary_pos_emb(q.float(), k.float(), cos.float(), sin.float())
    assert all(map(torch.equal, rotary.rotate(q, k, cos, sin), (x.to(half) for x in exact)))


def test_a_gated_product_that_is_no_multiple_of_a_block() -> None:
    inputs = [torch.randn(3, 701) * 3, torch.randn(3, 701), torch.randn(5, 701)]
    assert_near(both(lambda *given: [gated._Down.apply(*given)], inputs))


def test_joint_queries_keys_and_values() -> None:
    config = Qwen2Config(hidden_size=32, num_attention_heads=4, num_key_value_heads=2, attn_implementation=PACKED)
    attention = joint.AttentionForward(Qwen2Attention(config, 0))
    angles, layout = torch.rand(1, 6, 4).repeat(1, 1, 2), AttentionLayout(torch.tensor([0, 4, 6]), (4, 2))

    def call(x: Tensor) -> list[Tensor]:
        attention._module.to(x.dtype)
        return [attention(x, (angles.cos().to(x.dtype), angles.sin().to(x.dtype)), layout=layout)[0]]

    assert_near(both(call, [torch.randn(1, 6, 32)]))


@pytest.mark.parametrize(
    ("temperature", "with_entropy", "mib"), list(itertools.product([1.0, 0.6], [False, True], [1, 64]))
)
def test_the_head_in_one_chunk_or_many(temperature: float, with_entropy: bool, mib: int) -> None:
    """The vocabulary fills two blocks and a part, and the logits are large: exponents must not overflow."""
    hidden, weight, targets = torch.randn(40, 8) * 9, torch.randn(9001, 8), torch.randint(0, 9001, (40,))

    def call(hidden: Tensor, weight: Tensor) -> list[Tensor]:
        options = {"temperature": temperature, "entropy_gradient": with_entropy, "max_logits_mib": mib}
        found = policy_logprobs(hidden, weight, targets, **options)  # type: ignore[arg-type]
        return list(found if with_entropy else found[:1])

    for ours, exact in both(call, [hidden, weight]):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=1e-4 * float(exact.detach().abs().max()))


def test_entropy_of_a_sure_choice_is_not_lost_to_rounding() -> None:
    logits = torch.full((1, 5000), -40.0)
    logits[0, 7] = 1000.0
    logits[0, 9] = 995.0
    exact = torch.log_softmax(logits.double(), -1)
    logprob, entropy, normalizer = (torch.empty(1) for _ in range(3))
    kernels.read_logits(logits, torch.tensor([9]), 1.0, logprob, entropy, normalizer)
    torch.testing.assert_close(logprob.double(), exact[:, 9], rtol=1e-5, atol=0)
    torch.testing.assert_close(entropy.double(), -(exact.exp() * exact).sum(-1), rtol=1e-4, atol=0)
