"""Weights by NCCL broadcast from the learner's first rank to all ranks of all engines (``weight_transfer: nccl``).

For ``placement=split``. Learner and engines are one group for the transfer; a group without a member is none, so all
meet anew when one was replaced.
"""

from __future__ import annotations

from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo, NCCLWeightTransferEngine

from verl.sync.gpu import Rendezvous, Watched

GOES_PAST_DEAD = False


def trainer_info(meeting: Rendezvous, rank: int, bucket_bytes: int) -> NCCLTrainerInitInfo:
    """What the learner's end is made of."""
    return NCCLTrainerInitInfo(
        meeting.address, meeting.port, meeting.world_size, rank=rank, packed_buffer_size_bytes=bucket_bytes
    )


class Receiver(Watched, NCCLWeightTransferEngine):
    """The engine's end."""
