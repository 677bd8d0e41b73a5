"""Weights by ``ipc`` from two learner ranks: each engine reads the buffer of its own card, before it is refilled.

vLLM's sender and ours in two processes with gloo between them; what a card would share between processes is a file.
"""

from __future__ import annotations

import multiprocessing
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from verl.cluster.processes import free_port
from verl.errors import EngineDiedError
from verl.sync import gpu

RANKS, VERSIONS, BUCKET = 2, 3, 4096


def weights(version: int) -> Iterator[tuple[str, Tensor]]:
    for number in range(9):
        yield f"w{number}", torch.full((300 + 40 * number,), 10.0 * version + number)


class Cards:
    """The engines of the two cards, as rank 0 asks them; they look into the buffers of both ranks."""

    def __init__(self, folder: Path, dies: bool) -> None:
        self.arrived: dict[str, dict[str, Tensor]] = {"0.0": {}, "1.0": {}}
        self._folder, self._dies = folder, dies

    def ask(self, method: str, calls: Mapping[str, Any]) -> Iterator[tuple[str, Exception | None]]:
        for name, (_, arguments) in calls.items():
            if method == "update_weights":
                if self._dies and name == "1.0":
                    yield name, EngineDiedError("its process died")
                    continue
                self._read(name, arguments["update_info"])
            yield name, None

    def _read(self, name: str, info: dict[str, Any]) -> None:
        handle = info["ipc_handles"][f"GPU-{name[0]}"]
        content, start = (self._folder / handle[0]).read_bytes(), 0
        rows = zip(info["names"], info["shapes"], info["tensor_sizes"], strict=True)
        for tensor, shape, size in rows:
            whole = torch.frombuffer(bytearray(content[start : start + size]), dtype=torch.float32)
            self.arrived[name][tensor] = whole.view(shape)
            start += size


def _on_rank(rank: int, port: int, folder: Path, dies: bool, said: Any) -> None:
    from vllm.distributed.weight_transfer import packed_tensor

    from verl.learner.distributed import init_process

    empty = torch.empty

    def shared_buffer(*size: Any, **options: Any) -> Tensor:
        if options.pop("device", None) != "cuda":
            return empty(*size, **options)
        path = folder / f"buffer-{rank}"
        path.write_bytes(bytes(size[0]))
        return torch.from_file(str(path), shared=True, size=size[0], dtype=torch.uint8)

    card: list[tuple[Any, str, Any]] = [
        (gpu, "BUCKET_BYTES", BUCKET),
        (torch, "empty", shared_buffer),
        (torch.accelerator, "current_device_index", lambda: 0),
        (torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid=f"GPU-{rank}")),
        (torch.cuda, "current_stream", lambda: SimpleNamespace(synchronize=lambda: None)),
        (torch.cuda, "synchronize", lambda: None),
        (torch.cuda, "ipc_collect", lambda: None),
    ]
    for module, name, value in card:
        setattr(module, name, value)
    packed_tensor.reduce_tensor = lambda _: (None, (f"buffer-{rank}",))
    init_process(rank, RANKS, "127.0.0.1", port)
    version = 0
    cards = Cards(folder, dies)
    sender = gpu.GpuSender(
        "ipc", lambda: weights(version), cards.ask, rank=rank, free_port=lambda: ("127.0.0.1", free_port())
    )
    for version in range(1, VERSIONS + 1):
        sent = sender.send({"0.0": None, "1.0": None}, 1)
        for name, arrived in cards.arrived.items():
            if rank == 0 and not (dies and name == "1.0"):
                assert all(torch.equal(arrived[tensor], value) for tensor, value in weights(version)), (name, version)
        said.put((rank, version, sent.checksum, zlib.crc32(repr(sorted(sent.sums.items())).encode())))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("dies", [False, True])
def test_two_ranks_fill_their_buffers_in_step_also_where_an_engine_dies(tmp_path: Path, dies: bool) -> None:
    context = multiprocessing.get_context("spawn")
    said, port = context.Queue(), free_port()
    ranks = [context.Process(target=_on_rank, args=(rank, port, tmp_path, dies, said)) for rank in range(RANKS)]
    for process in ranks:
        process.start()
    rows = [said.get(timeout=120) for _ in range(RANKS * VERSIONS)]
    for process in ranks:
        process.join(60)
        assert process.exitcode == 0
    by_version = [{row[2:] for row in rows if row[1] == version} for version in range(1, VERSIONS + 1)]
    assert [len(told) for told in by_version] == [1] * VERSIONS  # both ranks say the same of what was sent
    assert len(set.union(*by_version)) == VERSIONS
