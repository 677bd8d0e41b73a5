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
from functools import cache, cached_property
from importlib.util import find_spec
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from verl.data.batch import PackedBatch
from verl.learner.ulysses import SequenceSplit

PACKED = "sleuth_packed"

# What model families pass to attention besides queries, keys and values, and this module does not do.
_REFUSED = ("softcap", "s_aux", "dropout")

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
    def groups(self) -> tuple[tuple[tuple[int, int], ...], Tensor, Tensor]:
        """``(sequences, width)`` of each group; the packed token of each padded row; the padded row of each token.

        Group follows group, and sequence sequence. What pads a sequence is its last token, again.
        """
        lengths = np.asarray(self.lengths)
        starts = np.cumsum(lengths) - lengths
        shapes, packed, padded, rows = [], [], np.empty(lengths.sum(), np.int64), 0
        for members in group_lengths(self.lengths):
            width = self.lengths[members[0]]
            shapes.append((len(members), width))
            for member in members:
                length, start = self.lengths[member], starts[member]
                packed.append(start + np.minimum(np.arange(width), length - 1))
                padded[start : start + length] = rows + np.arange(length)
                rows += width
        device = self.cu_seqlens.device
        return tuple(shapes), torch.from_numpy(np.concatenate(packed)).to(device), torch.from_numpy(padded).to(device)


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


class _PickRows(torch.autograd.Function):
    """Rows ``there`` of a tensor, whose own rows stand at ``back`` in the result if that is the longer one.

    Indexing would do it too, but its backward has to add up: it cannot know that rows which repeat are padding, whose
    gradient is 0.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, there: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(there, back)
        ctx.total = rows.shape[0]
        return rows.index_select(0, there)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        there, back = ctx.saved_tensors
        if len(there) >= ctx.total:
            return grad.index_select(0, back), None, None
        return grad.new_zeros(ctx.total, *grad.shape[1:]).index_copy_(0, there, grad), None, None


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
    q, k, v = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))
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
    shapes, packed, padded = layout.groups
    sizes = [sequences * width for sequences, width in shapes]
    parts = [_PickRows.apply(x, packed, padded) for x in (q, k, v)]
    groups = [parts] if len(sizes) == 1 else zip(*(x.split(sizes) for x in parts), strict=True)
    attended = []
    for shape, rows in zip(shapes, groups, strict=True):
        qs, ks, vs = (x.view(*shape, *x.shape[1:]).transpose(1, 2) for x in rows)
        if not q.is_cpu:  # where few kernels take key heads that serve several queries each
            ks, vs = (_repeat_heads(x, q.shape[1]) for x in (ks, vs))
        out = scaled_dot_product_attention(qs, ks, vs, is_causal=True, scale=scale, enable_gqa=q.is_cpu)
        attended.append(out.transpose(1, 2).flatten(0, 1))
    return _PickRows.apply(attended[0] if len(attended) == 1 else torch.cat(attended), padded, packed)


def _repeat_heads(x: Tensor, heads: int) -> Tensor:
    """``[sequences, kv_heads, width, dim]`` to ``[sequences, heads, width, dim]``: each key head serves its queries."""
    return x.repeat_interleave(heads // x.shape[1], dim=1) if heads > x.shape[1] else x


def _flash(q: Tensor, k: Tensor, v: Tensor, layout: AttentionLayout, scale: float | None) -> Tensor:
    """A variable-length kernel on CUDA; ``[tokens, heads, head_dim]`` in and out."""
    cu, longest = layout.cu_seqlens, layout.max_length
    if find_spec("flash_attn") is not None:
        from flash_attn import flash_attn_varlen_func  # type: ignore[import-not-found]

        return flash_attn_varlen_func(q, k, v, cu, cu, longest, longest, softmax_scale=scale, causal=True)
    from torch.nn.attention.varlen import varlen_attn

    out = varlen_attn(q, k, v, cu, cu, longest, longest, scale=scale, window_size=(-1, 0), **_shared_heads())
    assert isinstance(out, Tensor)  # a tuple only where auxiliary outputs are asked for
    return out


@cache
def _shared_heads() -> dict[str, Any]:
    """What tells ``varlen_attn`` that a key head serves several queries; its kernel of torch 2.11 does it untold."""
    from torch.nn.attention.varlen import varlen_attn

    return {"enable_gqa": True} if "enable_gqa" in signature(varlen_attn).parameters else {}


AttentionInterface.register(PACKED, packed_attention)
