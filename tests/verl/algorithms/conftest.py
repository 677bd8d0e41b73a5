"""A batch of packed sequences with observation gaps, for the tests of every loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from verl.algorithms.tokens import PolicyTokens, Totals, policy_spans

# p = prompt, g = generated, o = observation; one string a sequence, in packed order.
LAYOUT = ("pggoogg", "ppgggg", "pgogog", "pppg", "pggggoog", "pgggg")
COLUMNS = ("logprobs", "old_logprobs", "advantages", "rollout_logprobs", "reference_logprobs", "entropy")


@pytest.fixture
def packed() -> dict[str, Tensor]:
    """``[tokens]`` float64 columns, with garbage where the policy chose nothing, beside ``policy_mask`` and
    ``sequence``."""
    generator = torch.Generator().manual_seed(7)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    kinds = "".join(LAYOUT)
    mask = torch.tensor([kind == "g" for kind in kinds])
    sequence = torch.repeat_interleave(torch.arange(len(LAYOUT)), torch.tensor([len(row) for row in LAYOUT]))
    old = -1.5 + 0.3 * noise(len(kinds))
    columns = {
        "old_logprobs": old,
        "logprobs": old + 0.4 * noise(len(kinds)),
        "rollout_logprobs": old + 0.3 * noise(len(kinds)),
        "reference_logprobs": old + 0.5 * noise(len(kinds)),
        "entropy": noise(len(kinds)).abs(),
        "advantages": noise(len(LAYOUT))[sequence],
    }
    for column in columns.values():
        column[~mask] = 1e6
    return {**columns, "policy_mask": mask, "sequence": sequence}


@pytest.fixture
def batch(packed: dict[str, Tensor]) -> PolicyTokens:
    """The packed batch through the door: its policy tokens, ``logprobs`` a leaf that wants gradient."""
    mask, sequence = packed["policy_mask"], packed["sequence"]
    columns = {name: packed[name][mask] for name in COLUMNS}
    columns["logprobs"] = columns["logprobs"].clone().requires_grad_()
    return PolicyTokens(**columns, sequence=sequence[mask], span=policy_spans(mask, sequence))


@pytest.fixture
def totals(batch: PolicyTokens) -> Totals:
    """The totals of ``batch`` as a global batch."""
    lengths = torch.bincount(batch.sequence).tolist()
    return Totals(sum(lengths), len(lengths), kl_point=0.3)


@pytest.fixture
def make_tokens() -> Callable[..., PolicyTokens]:
    """Hand-written tokens in float64: ``make_tokens([[logp, ...], ...], [[old, ...], ...], [advantage, ...])``."""

    def make(
        logprobs: list[list[float]], old: list[list[float]], advantages: list[float], **extra: Any
    ) -> PolicyTokens:
        def flat(rows: list[list[float]]) -> Tensor:
            return torch.tensor([value for row in rows for value in row], dtype=torch.float64)

        lengths = torch.tensor([len(row) for row in logprobs])
        return PolicyTokens(
            logprobs=flat(logprobs).requires_grad_(),
            old_logprobs=flat(old),
            advantages=torch.tensor(advantages, dtype=torch.float64).repeat_interleave(lengths),
            sequence=torch.arange(len(lengths)).repeat_interleave(lengths),
            **{name: flat(rows) for name, rows in extra.items()},
        )

    return make
