"""Norms and rotary embeddings of our own say what those of transformers say, forwards and backwards."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaAttention
from transformers.models.qwen2 import modeling_qwen2
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP, Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention

from verl.learner import fused, gated, joint, rotary
from verl.learner.attention import PACKED


def test_a_norm_and_its_gradients_are_those_of_the_formula() -> None:
    weight = torch.rand(8, dtype=torch.float64, requires_grad=True)
    x = torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: fused._Norm.apply(x, w, 0.1), (x, weight))
    expected = x * (x.square().mean(-1, keepdim=True) + 0.1).rsqrt() * weight
    torch.testing.assert_close(fused._Norm.apply(x, weight, 0.1), expected)


def test_a_turn_and_its_gradient_are_those_of_the_formula() -> None:
    angles = torch.rand(1, 5, 4, dtype=torch.float64).repeat(1, 1, 2)
    q, k = (torch.randn(1, heads, 5, 8, dtype=torch.float64, requires_grad=True) for heads in (2, 1))

    def turned(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return rotary.rotate(q, k, angles.cos(), angles.sin())

    assert torch.autograd.gradcheck(turned, (q, k))
    assert rotary.is_plain_rotary(modeling_qwen2.apply_rotary_pos_emb)


def test_what_computes_something_else_is_left_alone() -> None:
    assert fused._is_plain_norm(Qwen2RMSNorm)
    assert not fused._is_plain_norm(GemmaRMSNorm)  # 1 + weight
    assert not fused._is_plain_norm(nn.LayerNorm)

    def other(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        return q * cos[:, None] + q.flip(-1) * sin[:, None], k

    assert not rotary.is_plain_rotary(other)


@pytest.mark.parametrize("bias", [True, False])
def test_joint_queries_keys_and_values_have_the_gradients_of_the_formula(bias: bool) -> None:
    angles = torch.rand(1, 5, 2, dtype=torch.float64).repeat(1, 1, 2)
    x = torch.randn(1, 5, 6, dtype=torch.float64, requires_grad=True)
    weights: list[Any] = []
    for heads in (4, 2, 2):
        weights.append(torch.randn(heads * 4, 6, dtype=torch.float64, requires_grad=True))
        weights.append(torch.randn(heads * 4, dtype=torch.float64, requires_grad=True) if bias else None)

    def together(x: Tensor, *weights: Any) -> tuple[Tensor, ...]:
        return joint._TurnedStates.apply(x, angles.cos(), angles.sin(), 4, *weights)

    def apart(x: Tensor, *weights: Any) -> tuple[Tensor, ...]:
        pairs = zip(weights[::2], weights[1::2], strict=True)
        q, k, v = (nn.functional.linear(x, w, b).unflatten(-1, (-1, 4)) for w, b in pairs)
        q, k = modeling_qwen2.apply_rotary_pos_emb(q, k, angles.cos(), angles.sin(), unsqueeze_dim=2)
        return q, k, v

    torch.testing.assert_close(together(x, *weights), apart(x, *weights))
    assert torch.autograd.gradcheck(together, (x, *weights))


def test_attention_is_joined_where_it_gives_the_same() -> None:
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "attn_implementation": PACKED}
    qwen2, llama = (kind(**sizes) for kind in (Qwen2Config, LlamaConfig))
    assert joint.is_plain_attention(modeling_qwen2.Qwen2Attention(qwen2, 0))
    assert joint.is_plain_attention(LlamaAttention(llama, 0))
    assert not joint.is_plain_attention(Qwen3Attention(Qwen3Config(**sizes), 0))  # norms of queries and keys
    adapted = modeling_qwen2.Qwen2Attention(qwen2, 0)
    adapted.k_proj = nn.Sequential(adapted.k_proj)  # type: ignore[assignment]
    assert not joint.is_plain_attention(adapted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fused_model_computes_the_same(
    model_folder: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modeling_qwen2, "apply_rotary_pos_emb", modeling_qwen2.apply_rotary_pos_emb)
    plain = AutoModelForCausalLM.from_pretrained(model_folder, dtype=dtype)
    ours = copy.deepcopy(plain)
    ids = torch.arange(12)[None]
    expected = plain(ids).logits
    fused.fuse(ours)
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(ours(ids).logits, expected, rtol=tolerance, atol=tolerance)


def test_a_gated_mlp_on_a_cpu_has_the_bits_of_the_model_s_own() -> None:
    torch.manual_seed(0)
    mlp: Any = Qwen2MLP(Qwen2Config(hidden_size=24, intermediate_size=40))
    assert gated.is_gated(mlp)
    x, grads = torch.randn(1, 9, 24), []
    for forward in (mlp.forward, gated.GatedForward(mlp)):
        given = x.clone().requires_grad_()
        out = forward(given)
        out.square().sum().backward()
        grads.append([out, given.grad, *(weight.grad for weight in mlp.parameters())])
        mlp.zero_grad()
    assert all(map(torch.equal, *grads))
