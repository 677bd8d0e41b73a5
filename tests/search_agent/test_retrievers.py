"""Work ends with the server it searches on, and says which log to read."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from search_agent.console.command import load_config
from search_agent.retrieval.server.child import RunningServer
from search_agent.retrievers import Retrievers, start_retrievers, while_serving
from verl.errors import InfrastructureError


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as running:
        yield running
        running.kill()


def watched(process: subprocess.Popen[bytes]) -> Retrievers:
    return Retrievers({}, {Path("logs/retriever_0.log"): RunningServer("http://127.0.0.1:1", process)})


async def test_work_gives_its_result_while_servers_live(process: subprocess.Popen[bytes]) -> None:
    assert await while_serving(watched(process), asyncio.sleep(0, 7)) == 7


async def test_work_stops_when_a_server_is_killed(process: subprocess.Popen[bytes]) -> None:
    waiting = asyncio.Event()

    async def work() -> None:
        process.kill()
        process.wait()
        await waiting.wait()

    with pytest.raises(InfrastructureError, match=r"killed by signal 9 \(log: logs/retriever_0\.log\)"):
        await while_serving(watched(process), work())


async def test_the_servers_end_is_told_and_not_its_consequence(process: subprocess.Popen[bytes]) -> None:
    async def work() -> None:
        process.kill()
        process.wait()
        raise InfrastructureError("every episode was aborted")

    with pytest.raises(InfrastructureError, match="the retrieval server at"):
        await while_serving(watched(process), work())


async def test_an_error_of_the_work_passes_while_servers_live(process: subprocess.Popen[bytes]) -> None:
    async def work() -> None:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        await while_serving(watched(process), work())


async def test_servers_of_others_are_named_for_every_split(tmp_path: Path) -> None:
    config = replace(load_config([]), retriever="http://a:1, http://b:2")
    with ExitStack() as stack:
        found = await start_retrievers(config, {"train": None, "test": None}, tmp_path, stack)
    assert found.urls == {split: ["http://a:1", "http://b:2"] for split in ("train", "test")}
    assert not found.logs


async def test_splits_of_one_corpus_share_a_server(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"id": "1", "contents": "title\\ntext"}\n')
    with ExitStack() as stack:
        found = await start_retrievers(load_config([]), {"train": corpus, "test": corpus}, tmp_path / "logs", stack)
        assert found.urls["train"] == found.urls["test"]
        assert list(found.logs) == [tmp_path / "logs" / "retriever_0.log"]
        found.check()
