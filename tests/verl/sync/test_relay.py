"""A file arrives whole or not at all; folders of dead runs go, those of living ones stay."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from verl.errors import InfrastructureError
from verl.sync import WeightUpdate, relay
from verl.sync.file import mapped_weights, publish


@pytest.fixture
def update(tmp_path: Path) -> WeightUpdate:
    (tmp_path / "home").mkdir()
    return publish([("a", torch.arange(1000.0)), ("b", torch.ones(3))], 7, tmp_path / "home")


async def pieces(update: WeightUpdate, size: int = 100, lost: int | None = None) -> AsyncIterator[bytes]:
    data = Path(update.path).read_bytes()  # noqa: ASYNC240
    for number, start in enumerate(range(0, len(data), size)):
        if number != lost:
            yield data[start : start + size]


async def test_what_arrives_is_what_was_published(update: WeightUpdate, tmp_path: Path) -> None:
    copy = await relay.receive(update, pieces(update), tmp_path)
    assert Path(copy.path).parent == tmp_path
    with mapped_weights(copy) as weights:
        assert [(name, tensor.sum().item()) for name, tensor in weights] == [("a", 499500.0), ("b", 3.0)]


async def test_a_piece_that_is_lost_is_noticed_and_nothing_is_left(update: WeightUpdate, tmp_path: Path) -> None:
    folder = tmp_path / "there"
    folder.mkdir()
    with pytest.raises(InfrastructureError, match="version 7: 3996 bytes"):
        await relay.receive(update, pieces(update, lost=1), folder)
    assert list(folder.iterdir()) == []


async def test_a_folder_that_is_gone_is_told(update: WeightUpdate, tmp_path: Path) -> None:
    with pytest.raises(InfrastructureError, match="cannot be written"):
        await relay.receive(update, pieces(update), tmp_path / "none")
    with pytest.raises(InfrastructureError, match="cannot be sent"):
        relay.read_piece(str(tmp_path / "none"), 0)


@given(size=st.integers(1, 40), length=st.integers(0, 100))
def test_pieces_read_one_after_another_are_the_file(
    tmp_path_factory: pytest.TempPathFactory, size: int, length: int
) -> None:
    file = tmp_path_factory.mktemp("relay") / "file"
    file.write_bytes(bytes(range(length)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relay, "PIECE_BYTES", size)
        read = b"".join(relay.read_piece(str(file), offset) for offset in range(0, length, size))
    assert read == bytes(range(length))


class NodeActor:
    """A node's actor, without a process; ``gone`` where its node does not answer."""

    def __init__(self, folder: Path, *, gone: bool = False) -> None:
        self._folder, self._gone = folder, gone

    def __getattr__(self, method: str) -> Any:
        async def call(*args: Any) -> Any:
            await asyncio.sleep(60 if self._gone else 0)
            return await super(NodeActor, self).__getattribute__(f"do_{method}")(*args)

        return type("Method", (), {"remote": lambda _, *args: asyncio.ensure_future(call(*args))})()

    async def do_fetch(self, update: WeightUpdate, source: Any) -> WeightUpdate:
        return await relay.receive(update, pieces(update), self._folder)

    async def do_release(self, update: WeightUpdate) -> None:
        relay.release(update)


@pytest.mark.parametrize("engine_node", ["gpus", "head"])
async def test_a_file_goes_also_where_the_learner_is_on_another_node_than_the_driver(
    update: WeightUpdate, tmp_path: Path, engine_node: str
) -> None:
    update = replace(update, node="gpus")  # as on a cluster whose head has none
    ways = relay.Relay(lambda _: NodeActor(tmp_path), here="head", has_died=lambda _: False, explain=lambda e: e)
    copy = await ways.at(update, engine_node)
    assert copy.node == engine_node
    assert (os.path.exists(update.path), os.path.exists(copy.path)) == (True, True)  # noqa: ASYNC240
    await ways.release(update)
    assert (os.path.exists(update.path), os.path.exists(copy.path)) == (False, False)  # noqa: ASYNC240


async def test_a_node_that_is_gone_holds_nobody_up(update: WeightUpdate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "CLOSE_TIMEOUT_S", 0.01)
    gone = NodeActor(Path(), gone=True)
    ways = relay.Relay(lambda _: gone, here="head", has_died=lambda _: False, explain=lambda e: e)
    await asyncio.wait_for(ways.release(replace(update, node="gpus")), 5)

    def ended(_: str) -> NodeActor:
        raise RuntimeError("the cluster has ended")

    await relay.Relay(ended, here="head", has_died=lambda _: False, explain=lambda e: e).release(
        replace(update, node="gpus")
    )


def test_a_dead_runs_folder_is_removed_by_the_next_run_and_a_living_ones_is_not(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from verl.sync.relay import RunFolderInMemory;"
        "folder = RunFolderInMemory('sleuth-a', 'node', pathlib.Path(sys.argv[1]));"
        "(folder.path / 'weights').write_text('x'); print('made', flush=True); sys.stdin.readline()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "made\n"
        relay.RunFolderInMemory("sleuth-b", "node", tmp_path).close()
        assert (tmp_path / "sleuth-a" / "node" / "weights").exists()
        process.kill()
    last = relay.RunFolderInMemory("sleuth-c", "node", tmp_path)
    assert not (tmp_path / "sleuth-a").exists()
    assert last.path.exists()
