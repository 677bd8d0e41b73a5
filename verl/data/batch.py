"""A packed micro-batch: sequences laid end to end as flat tensors, without padding.

Position convention: a value at position t speaks of token t given the tokens before it in its sequence, so the hidden
state that predicts token t stands at t - 1. ``policy_positions`` are the t of policy tokens; they are never the first
of a sequence. The per-token credit and old log-probs are gathered to ``[policy tokens]`` here, once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from verl.data.samples import TrainingSample
from verl.trajectory import FloatArray

_NO_COLUMNS: Mapping[str, Sequence[FloatArray]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Tensors of one micro-batch: ``tokens`` positions of ``sequences`` sequences, ``n`` of them policy tokens."""

    input_ids: Tensor
    """``[tokens]`` int64."""
    position_ids: Tensor
    """``[tokens]`` int64, from 0 in each sequence."""
    cu_seqlens: Tensor
    """``[sequences + 1]`` int32: where each sequence starts, and the total."""
    lengths: tuple[int, ...]
    """The sequence lengths again, on the host: loops over sequences must not wait for a device."""
    sequence_index: Tensor
    """``[tokens]`` int64: which sequence of this micro-batch a token belongs to."""
    policy_mask: Tensor
    """``[tokens]`` bool."""
    policy_positions: Tensor
    """``[n]`` int64, ascending: where the mask is True. The predicting hidden state is one earlier."""
    sequence: Tensor
    """``[n]`` int64: ``sequence_index`` of the policy tokens."""
    targets: Tensor
    """``[n]`` int64: the policy tokens themselves."""
    advantages: Tensor
    """``[n]`` float32."""
    rollout_logprobs: Tensor
    """``[n]`` float32."""
    columns: Mapping[str, Tensor]
    """Further ``[n]`` float32 columns by name (old log-probs, those of the reference, returns)."""
    images: tuple[tuple[str, ...], ...] = ()
    """Pictures of each sequence; empty where no sequence has any."""

    @property
    def num_tokens(self) -> int:
        """Length of the packed sequence."""
        return int(self.input_ids.shape[0])


def pack_samples(
    samples: Sequence[TrainingSample],
    device: torch.device | str = "cpu",
    columns: Mapping[str, Sequence[FloatArray]] = _NO_COLUMNS,
) -> PackedBatch:
    """Lay ``samples`` end to end. None at all gives the null batch: one token, no policy token, zero gradient.

    ``columns`` are further ``[tokens]`` arrays a sample, read at the policy tokens. Raises ValueError if the first
    token of a sample is a policy token: nothing could predict it.
    """
    if not samples:
        samples, columns = [_NULL], {name: [_NULL.advantages] for name in columns}
    if any(sample.policy_mask[0] for sample in samples):
        raise ValueError("the first token of a sample is a policy token: it has no context")
    lengths = tuple(len(sample) for sample in samples)
    mask = np.concatenate([sample.policy_mask for sample in samples])
    positions = np.flatnonzero(mask)
    input_ids = np.concatenate([sample.token_ids for sample in samples]).astype(np.int64)
    sequence_index = np.repeat(np.arange(len(lengths)), lengths)
    starts = np.concatenate([[0], np.cumsum(lengths)])

    def tensor(array: npt.NDArray[Any], dtype: torch.dtype) -> Tensor:
        return torch.as_tensor(array, dtype=dtype).to(device, non_blocking=True)

    def column(values: Sequence[FloatArray]) -> Tensor:
        return tensor(np.concatenate(values)[positions], torch.float32)

    return PackedBatch(
        input_ids=tensor(input_ids, torch.int64),
        position_ids=tensor(np.arange(len(mask)) - starts[sequence_index], torch.int64),
        cu_seqlens=tensor(starts, torch.int32),
        lengths=lengths,
        sequence_index=tensor(sequence_index, torch.int64),
        policy_mask=tensor(mask, torch.bool),
        policy_positions=tensor(positions, torch.int64),
        sequence=tensor(sequence_index[positions], torch.int64),
        targets=tensor(input_ids[positions], torch.int64),
        advantages=column([s.advantages for s in samples]),
        rollout_logprobs=column([s.rollout_logprobs for s in samples]),
        columns={name: column(values) for name, values in columns.items()},
        images=tuple(sample.images for sample in samples) if any(sample.images for sample in samples) else (),
    )


_NULL = TrainingSample(
    token_ids=np.zeros(1, np.int32),
    policy_mask=np.zeros(1, np.bool_),
    advantages=np.zeros(1, np.float32),
    rollout_logprobs=np.zeros(1, np.float32),
)
