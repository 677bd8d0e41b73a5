"""Weights over CUDA IPC: engines copy out of the learner's own GPU memory (``weight_transfer: ipc``).

For ``placement=shared``. Every rank of an engine maps the buffer of the learner rank on its GPU; a member that dies
leaves the transfer whole for the others.
"""

from __future__ import annotations

from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo, IPCWeightTransferEngine

from verl.sync.gpu import Rendezvous, Watched

GOES_PAST_DEAD = True


def trainer_info(meeting: Rendezvous, rank: int, bucket_bytes: int) -> IPCTrainerInitInfo:
    """What the learner's end is made of."""
    return IPCTrainerInitInfo(rank=rank, packed=True, packed_buffer_size_bytes=bucket_bytes)


class Receiver(Watched, IPCWeightTransferEngine):
    """The engine's end."""
