"""vLLM's own OpenAI server, as a user starts it, behind ``endpoint=``: ids, stop strings, chat, methods."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.harness import ROOT
from search_agent import evaluate
from search_agent.console.command import load_config
from search_agent.data import inputs
from search_agent.openai_client import Draw, Endpoint, OpenAIClient
from verl.rollout.episodes import read_episodes

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(900)]
TASKS = 6


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the embedded world and its model are built."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def server(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server of the embedded world's model, up to ``/v1``."""
    source = load_config([]).data.build(out=data, seed=0)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    quiet = {"TORCHDYNAMO_DISABLE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(source.model), "--served-model-name",
        "tiny", "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager",
        "--max-model-len", "512", "--max-num-seqs", "16", "--block-size", "32",
    ]  # fmt: skip
    with log.open("w") as out:
        process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **quiet, "VLLM_NO_USAGE_STATS": "1"}, stdout=out, stderr=out
        )
    try:
        deadline = time.monotonic() + 400
        while True:
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(timeout=60)


@pytest.fixture
def measure(server: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``cmd/eval.sh`` with the server; returns what came out and the greedy episodes."""
    monkeypatch.setattr(inputs, "DATA_ROOT", data)

    def run(name: str, *words: str) -> tuple[dict[str, Any], list[Any]]:
        told = [
            "model=embedded",
            f"endpoint={server}",
            "endpoint_model=tiny",
            "endpoint_seeds=false",
            f"run_dir={tmp_path / name}",
        ]
        assert evaluate.main([*told, f"evaluation.test_tasks={TASKS}", *words]) == 0
        found = json.loads((tmp_path / name / "evaluation.json").read_text())
        assert {how: found[how]["aborted"] for how in ("greedy", "sampled")} == {"greedy": 0, "sampled": 0}
        assert found["greedy"]["n"] == found["sampled"]["n"] == TASKS
        return found, list(read_episodes(tmp_path / name / "trajectories" / "eval-greedy_000000.jsonl.gz"))

    return run


def test_ids_and_log_probs_are_the_servers_and_greedy_repeats(measure: Any) -> None:
    _, first = measure("first")
    _, again = measure("again")
    for episode, other in zip(first, again, strict=True):
        played = episode.trajectory
        assert played.token_ids().tolist() == other.trajectory.token_ids().tolist()
        for turn in played.generated:
            assert len(turn) > 0
            assert np.isfinite(turn.logprobs).all()
            assert (turn.logprobs <= 0).all()


@pytest.mark.parametrize("method", ["direct", "rag", "ircot", "iterretgen"])
def test_every_method_is_played(method: str, measure: Any) -> None:
    _, episodes = measure(method, f"method={method}", "environment.max_prompt_tokens=300")
    for episode in episodes:
        assert len(episode.trajectory.calls) == 0 if method == "direct" else episode.trajectory.calls
        assert episode.trajectory.outcome in ("finished", "truncated")


def test_messages_of_a_chat_are_answered(measure: Any) -> None:
    words = ["endpoint_api=chat", "environment.framing=chat_turns", "environment.max_prompt_tokens=300"]
    _, episodes = measure("chat", *words, "method=rag")
    assert all(episode.trajectory.generated for episode in episodes)


def test_a_text_ends_at_its_stop_string_of_any_number_of_them(server: str) -> None:
    async def ask() -> Any:
        async with OpenAIClient(Endpoint((server,), "tiny")) as client:
            [free] = await client.complete("where was", Draw(40))
            stop = free.text[20:24]
            ids = await client.complete([5, 6, 7], Draw(8, logprobs=True))
            stopped = await client.complete("where was", Draw(40, stop=("~1", "~2", "~3", "~4", "~5", stop)))
            return free, stop, stopped[0], ids[0]

    free, stop, stopped, ids = asyncio.run(ask())
    assert stopped.text == free.text[: free.text.index(stop) + len(stop)]
    assert stopped.stop == stop
    assert ids.token_ids is not None
    assert len(ids.token_ids) == len(ids.logprobs) == 8
