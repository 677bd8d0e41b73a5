"""The ranks of a learner: their process group, and who shards, replicates and splits what.

shard       the weights of one copy lie in pieces on ``shard_ranks`` ranks (FSDP2); other ranks hold other copies
sequence    ``sequence_ranks`` neighbours compute one micro-batch together, each a slice of its tokens (Ulysses)
data        groups of such neighbours compute different micro-batches
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from verl.errors import UserError
from verl.learner.config import LearnerConfig
from verl.learner.memory import CONTEXT_BYTES, MARGIN

_TIMEOUT = timedelta(minutes=10)


def init_process(
    rank: int,
    world_size: int,
    address: str,
    port: int,
    device: str = "cpu",
    *,
    listener: socket.socket | None = None,
) -> None:
    """Join the group of ``world_size`` ranks that meet at ``address:port``: gloo on ``cpu``, nccl on ``cuda``.

    ``listener`` is for rank 0: the socket that has been bound there since the port was told to the others, so that
    nobody can have taken it meanwhile; it is this function's from now on. A rank that is alone may write port 0.
    Call once a process, before a ``Learner`` is made. With ``cuda`` the process's first visible GPU is its device, and
    products in float32 are exact, as the engine's.
    """
    backend, device_id = "gloo", None
    if device == "cuda":
        backend, device_id = "nccl", torch.device("cuda", 0)
        torch.cuda.set_device(device_id)
        torch.set_float32_matmul_precision("highest")
    if listener is None:
        meet = f"tcp://{address}:{port}"
        dist.init_process_group(
            backend, init_method=meet, rank=rank, world_size=world_size, timeout=_TIMEOUT, device_id=device_id
        )
        return
    fd = listener.detach()
    server = dist.TCPStore(address, port, world_size, True, _TIMEOUT, master_listen_fd=fd)  # type: ignore[attr-defined]
    # The prefix is the one that an ``init_method`` gives the others.
    store = dist.PrefixStore("default_pg", server)  # type: ignore[attr-defined]
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=world_size, timeout=_TIMEOUT, device_id=device_id
    )


@dataclass(frozen=True)
class Layout:
    """This rank's place among all."""

    mesh: DeviceMesh
    """What FSDP2 shards over: ``[shard]``, or ``[replicate, shard]`` where there is more than one copy."""
    device: torch.device
    """Where this rank computes."""
    data_rank: int
    """Which of the ``data_ranks`` shares of micro-batches is this rank's."""
    data_ranks: int
    sequence_rank: int
    """Which slice of its micro-batches' tokens is this rank's."""
    sequence_ranks: int
    sequence_group: dist.ProcessGroup | None
    """The neighbours that share its micro-batches; None where there are none."""

    @property
    def counts(self) -> bool:
        """Whether this rank's metrics count: its neighbours have the same ones."""
        return self.sequence_rank == 0


def make_layout(config: LearnerConfig) -> Layout:
    """Divide all ranks as ``config`` says. Collective. Raises UserError where they do not divide."""
    kind, ranks, rank = "cuda" if dist.get_backend() == "nccl" else "cpu", dist.get_world_size(), dist.get_rank()
    shard, sequence = config.shard_ranks or ranks, config.sequence_ranks
    for key, value in (("shard_ranks", shard), ("sequence_ranks", sequence)):
        if ranks % value:
            raise UserError(f"learner.{key}={value} does not divide {ranks} learner ranks: write a divisor of {ranks}")
    if shard == ranks:
        mesh = init_device_mesh(kind, (ranks,), mesh_dim_names=("shard",))
    else:
        mesh = init_device_mesh(kind, (ranks // shard, shard), mesh_dim_names=("replicate", "shard"))
    group = None
    if sequence > 1:
        group = init_device_mesh(kind, (ranks // sequence, sequence), mesh_dim_names=("data", "sequence")).get_group(1)
    return Layout(
        mesh=mesh,
        device=torch.device("cuda", torch.cuda.current_device()) if kind == "cuda" else torch.device("cpu"),
        data_rank=rank // sequence,
        data_ranks=ranks // sequence,
        sequence_rank=rank % sequence,
        sequence_ranks=sequence,
        sequence_group=group,
    )


def card_room(layout: Layout) -> int | None:
    """Bytes that a rank may take of the smallest card of all, a margin left; None on a CPU. Collective."""
    if layout.device.type != "cuda":
        return None
    size = torch.tensor(torch.cuda.get_device_properties(layout.device).total_memory, device=layout.device)
    dist.all_reduce(size, op=dist.ReduceOp.MIN)
    return int(size.item() * (1 - MARGIN)) - CONTEXT_BYTES


def reduce_over_ranks(metrics: Mapping[str, Sequence[torch.Tensor]], layout: Layout) -> dict[str, float]:
    """Add scalars over micro-batches and all ranks that count, in float64, except ``*_max``: the largest is taken.

    Each metric has one scalar a micro-batch.
    """
    largest = sorted(name for name in metrics if name.endswith("_max"))
    summed = sorted(name for name in metrics if name not in largest)
    reduced: dict[str, float] = {}
    for names, operation in ((summed, dist.ReduceOp.SUM), (largest, dist.ReduceOp.MAX)):
        if names:
            shares = torch.stack([share for name in names for share in metrics[name]]).view(len(names), -1)
            shares = shares.to(layout.device, torch.float64)
            flat = shares.sum(1) if operation is dist.ReduceOp.SUM else shares.amax(1)
            if not layout.counts and operation is dist.ReduceOp.SUM:
                flat.zero_()
            dist.all_reduce(flat, op=operation)
            reduced.update(zip(names, flat.tolist(), strict=True))
    return reduced
