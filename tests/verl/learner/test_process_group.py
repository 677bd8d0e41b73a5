"""A rank with a GPU says which one is its own before it meets the others, and computes in exact float32."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from verl.learner.distributed import init_process


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_rank_takes_its_device_before_it_joins_the_group(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda own: calls.append(own))
    monkeypatch.setattr(torch, "set_float32_matmul_precision", calls.append)
    joined = lambda backend, **options: calls.append((backend, options["device_id"]))  # noqa: E731
    monkeypatch.setattr("torch.distributed.init_process_group", joined)
    init_process(0, 1, "127.0.0.1", 0, device)
    own = torch.device("cuda", 0)
    assert calls == ([own, "highest", ("nccl", own)] if device == "cuda" else [("gloo", None)])


def test_no_test_sees_a_card() -> None:
    """Ranks would meet by NCCL, several on one card, as soon as there is one."""
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert torch.cuda.device_count() == 0
