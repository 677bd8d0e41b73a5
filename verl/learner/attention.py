"""Causal attention over packed sequences, registered once in transformers' attention interface.

A model is loaded with ``attn_implementation=PACKED`` and called with ``layout=`` the ``AttentionLayout`` of its
micro-batch; no model is forked and no mask is ever built:

- CUDA, half precision: FlashAttention's variable-length kernel, or torch's ``varlen_attn``.
- anywhere else: SDPA over groups of sequences of similar length, each group padded on the right. Under a causal mask no
  token sees what stands to its right, so the padding changes nothing and is dropped afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from verl.data.batch import PackedBatch
from verl.learner.ulysses import SequenceSplit

PACKED = "sleuth_packed"

# What model families pass to attention besides queries, keys and values, and this module does not do.
_REFUSED = ("softcap", "s_aux", "dropout")

IntArray = npt.NDArray[np.int64]

# A call of the kernel, with the moves around it, takes as long as attention over a sequence of so many tokens.
_CALL_TOKENS = 192


@dataclass(frozen=True)
class AttentionLayout:
    """Where the sequences of a packed micro-batch lie. Made once a micro-batch, read by every layer."""

    cu_seqlens: Tensor
    """``[sequences + 1]`` int32, on the device of the tokens."""
    lengths: tuple[int, ...]
    """The sequence lengths, on the host."""
    split: SequenceSplit | None = None
    """Set where each rank holds a slice of the tokens; ``cu_seqlens`` and ``lengths`` are those of all tokens."""

    @classmethod
    def of(cls, batch: PackedBatch, split: SequenceSplit | None) -> AttentionLayout:
        """The layout of a micro-batch; padding that ``split`` needs is a sequence of its own."""
        padding = 0 if split is None else split.padding(batch.num_tokens)
        if not padding:
            return cls(batch.cu_seqlens, batch.lengths, split)
        cu_seqlens = torch.cat([batch.cu_seqlens, batch.cu_seqlens[-1:] + padding])
        return cls(cu_seqlens, (*batch.lengths, padding), split)

    @property
    def max_length(self) -> int:
        """Tokens of the longest sequence."""
        return max(self.lengths)

    @cached_property
    def groups(self) -> tuple[tuple[int, int, Tensor, Tensor], ...]:
        """``(sequences, width, packed, padded)`` of each group: token ``packed[i]`` stands at ``padded[i]`` in it."""
        lengths = np.asarray(self.lengths)
        starts = np.cumsum(lengths) - lengths
        return tuple(self._group(np.asarray(m), lengths[m], starts[m]) for m in group_lengths(self.lengths))

    def _group(self, members: IntArray, lengths: IntArray, starts: IntArray) -> tuple[int, int, Tensor, Tensor]:
        width = int(lengths.max())
        # Each token's place within its sequence, then where that sequence starts in either form.
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        packed = within + np.repeat(starts, lengths)
        padded = within + np.repeat(np.arange(len(members)) * width, lengths)
        device = self.cu_seqlens.device
        return len(members), width, torch.from_numpy(packed).to(device), torch.from_numpy(padded).to(device)


def group_lengths(lengths: Sequence[int], call_tokens: int = _CALL_TOKENS) -> list[list[int]]:
    """Indices of sequences in groups, longest first: one joins while its padding costs less than a call of its own.

    Attention over n tokens costs n squared; a call costs ``call_tokens`` squared.
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        widest = lengths[groups[-1][0]] if groups else 0
        if widest**2 - lengths[index] ** 2 <= call_tokens**2 and groups:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


class _MoveRows(torch.autograd.Function):
    """Rows ``source`` of a tensor to rows ``target`` of a zero tensor. Neither repeats, so backward is the same move.

    Indexing would do it too, but its backward has to add up, since it cannot know that no row repeats.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, rows: Tensor, source: Tensor, target: Tensor, total: int) -> Tensor:
        ctx.save_for_backward(source, target)
        ctx.total = rows.shape[0]  # type: ignore[attr-defined]
        return _moved(rows, source, target, total)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        source, target = ctx.saved_tensors
        return _moved(grad, target, source, ctx.total), None, None, None


def _moved(rows: Tensor, source: Tensor, target: Tensor, total: int) -> Tensor:
    make = rows.new_empty if len(target) == total else rows.new_zeros
    return make(total, *rows.shape[1:]).index_copy_(0, target, rows.index_select(0, source))


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: AttentionLayout,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend within each sequence: ``[1, heads, tokens, head_dim]`` in, ``[1, tokens, heads, head_dim]`` out.

    Grouped-query models pass fewer key and value heads. Raises NotImplementedError for a window below a
    sequence, and for what some model families add to attention: leaving it out would be silently wrong.
    """
    for name in _REFUSED:
        option = options.get(name)
        if isinstance(option, Tensor) or option:
            raise NotImplementedError(f"attention with {name} over packed sequences")
    if sliding_window is not None and sliding_window < layout.max_length:
        raise NotImplementedError(f"sliding window of {sliding_window} tokens, sequences of {layout.max_length}")
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    if layout.split is not None:
        q, k, v = _to_heads(layout.split, q, k, v)
    kernel = _flash if q.is_cuda and q.dtype in (torch.bfloat16, torch.float16) else _grouped_sdpa
    attended = kernel(q, k, v, layout, scaling)
    if layout.split is not None:
        attended = layout.split.to_tokens(attended)
    return attended[None], None


def _to_heads(split: SequenceSplit, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each rank's heads of all tokens. Too few key heads to go round are repeated first, as their queries need them."""
    if k.shape[1] % split.ranks:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    return split.to_heads(q), split.to_heads(k), split.to_heads(v)


def _grouped_sdpa(q: Tensor, k: Tensor, v: Tensor, layout: AttentionLayout, scale: float | None) -> Tensor:
    """SDPA a group of similar lengths at a time; ``[tokens, heads, head_dim]`` in and out."""
    out: Tensor | None = None
    for sequences, width, packed, padded in layout.groups:
        rows = sequences * width
        parts = (_MoveRows.apply(x, packed, padded, rows).view(sequences, width, *x.shape[1:]) for x in (q, k, v))
        qs, ks, vs = (_repeat_heads(x.transpose(1, 2), q.shape[1]) for x in parts)
        attended = scaled_dot_product_attention(qs, ks, vs, is_causal=True, scale=scale)
        flat = attended.transpose(1, 2).reshape(rows, *q.shape[1:])
        part = _MoveRows.apply(flat, padded, packed, q.shape[0])
        out = part if out is None else out + part
    assert out is not None  # a micro-batch has at least one sequence
    return out


def _repeat_heads(x: Tensor, heads: int) -> Tensor:
    """``[sequences, kv_heads, width, dim]`` to ``[sequences, heads, width, dim]``: each key head serves its queries."""
    repeats = heads // x.shape[1]
    if repeats == 1:
        return x
    sequences, kv_heads, width, dim = x.shape
    return x[:, :, None].expand(sequences, kv_heads, repeats, width, dim).reshape(sequences, heads, width, dim)


def _flash(q: Tensor, k: Tensor, v: Tensor, layout: AttentionLayout, scale: float | None) -> Tensor:
    """A variable-length kernel on CUDA; ``[tokens, heads, head_dim]`` in and out."""
    cu, longest = layout.cu_seqlens, layout.max_length
    if find_spec("flash_attn") is not None:
        from flash_attn import flash_attn_varlen_func  # type: ignore[import-not-found]

        return flash_attn_varlen_func(q, k, v, cu, cu, longest, longest, softmax_scale=scale, causal=True)
    from torch.nn.attention.varlen import varlen_attn

    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    out = varlen_attn(q, k, v, cu, cu, longest, longest, scale=scale, window_size=(-1, 0))
    assert isinstance(out, Tensor)  # a tuple only where auxiliary outputs are asked for
    return out


AttentionInterface.register(PACKED, packed_attention)
