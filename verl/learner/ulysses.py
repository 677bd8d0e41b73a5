"""Ulysses sequence parallelism: neighbours compute one micro-batch together, each a slice of its tokens.

Everything but attention works token by token, so a rank sees only its slice. Around attention two all-to-alls turn
"all heads of my tokens" into "my heads of all tokens" and back (Jacobs et al. 2023). The scores of policy tokens are
gathered at the end, so that losses see whole sequences; every neighbour computes the same loss, and the gradient of a
score flows back on the one rank that made it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from verl.data.batch import PackedBatch


@dataclass(frozen=True)
class SequenceSplit:
    """How a micro-batch's tokens lie on the neighbours. Tokens are padded to a multiple of their number."""

    group: dist.ProcessGroup
    rank: int
    ranks: int

    def padding(self, tokens: int) -> int:
        """Tokens to add; they form a sequence of their own, of which nothing is asked."""
        return -tokens % self.ranks

    def slice_of(self, per_token: Tensor) -> Tensor:
        """This rank's slice of ``[tokens]``, padded with zeros: ``[tokens / ranks]``."""
        padded = torch.nn.functional.pad(per_token, (0, self.padding(len(per_token))))
        return padded.chunk(self.ranks)[self.rank]

    def own_policy_tokens(self, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        """Which policy tokens are predicted on this rank (indices into ``[n]``), and where in its slice: both int64."""
        width = (batch.num_tokens + self.padding(batch.num_tokens)) // self.ranks
        predicting = batch.policy_positions - 1
        own = (predicting // width == self.rank).nonzero().squeeze(1)
        return own, predicting[own] - self.rank * width

    def gather_scores(self, scores: Tensor, own: Tensor, total: int) -> Tensor:
        """The scores ``[total]`` of all policy tokens from each neighbour's ``own``."""
        gathered: Tensor = _GatherScores.apply(scores, own, total, self.group)
        return gathered

    def to_heads(self, x: Tensor) -> Tensor:
        """``[tokens / ranks, heads, dim]`` to ``[tokens, heads / ranks, dim]``."""
        tokens, heads, dim = x.shape
        by_rank = x.reshape(tokens, self.ranks, heads // self.ranks, dim).transpose(0, 1)
        return self._exchange(by_rank).reshape(tokens * self.ranks, heads // self.ranks, dim)

    def to_tokens(self, x: Tensor) -> Tensor:
        """``[tokens, heads / ranks, dim]`` to ``[tokens / ranks, heads, dim]``: the inverse."""
        tokens, heads, dim = x.shape
        from_rank = self._exchange(x.reshape(self.ranks, tokens // self.ranks, heads, dim))
        return from_rank.transpose(0, 1).reshape(tokens // self.ranks, self.ranks * heads, dim)

    def _exchange(self, x: Tensor) -> Tensor:
        """Row i to neighbour i, in return for its row of this rank's number."""
        exchanged: Tensor = _AllToAll.apply(x.contiguous(), self.group)
        return exchanged


class _AllToAll(torch.autograd.Function):
    """Its own inverse, so backward is the same exchange."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        out = torch.empty_like(x)
        dist.all_to_all_single(out, x, group=group)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        grad = grad.contiguous()
        out = torch.empty_like(grad)
        dist.all_to_all_single(out, grad, group=ctx.group)
        return out, None


class _GatherScores(torch.autograd.Function):
    """Backward does not add over neighbours: they hold copies of one loss, not shares of it."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, own: Tensor, total: int, group: dist.ProcessGroup) -> Tensor:
        ctx.save_for_backward(own)
        gathered = scores.new_zeros(total).index_copy_(0, own, scores)
        dist.all_reduce(gathered, group=group)
        return gathered

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (own,) = ctx.saved_tensors
        return grad.index_select(0, own), None, None, None
