"""A real server process: starts, answers, drains, and never outlives who started it."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from search_agent.retrieval.client.client import RetrievalClient
from search_agent.retrieval.config import ClientConfig
from search_agent.retrieval.server import child
from search_agent.retrieval.server.access import TOKEN_VARIABLE
from search_agent.retrieval.server.child import RunningServer, start_server
from search_agent.retrieval.server.fleet import FleetConfig, parse_fleet, start_here, start_on_ray
from search_agent.retrieval.types import Document
from verl.errors import InfrastructureError, UserError

WORDS = [f"word{number}" for number in range(12)]
ROOT = Path(__file__).resolve().parents[4]


def write_corpus(folder: Path, texts: list[str]) -> Path:
    path = folder / "corpus.jsonl"
    rows = [{"id": str(number), "contents": f'"Title {number}"\n{text}'} for number, text in enumerate(texts)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("server")
    corpus = write_corpus(folder, ["red apple", "green apple tree", "blue sky"])
    with start_server(corpus, log=folder / "server.log") as running:
        yield running


def get(url: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


async def test_the_client_finds_what_the_server_holds(server: RunningServer) -> None:
    async with RetrievalClient(ClientConfig(urls=(server.url,))) as client:
        await client.wait_ready(10)
        result = await client.search("apples on a tree", 5)
        assert [document.id for document in result.documents] == ["1", "0"]
        assert (result.documents[0].title, result.documents[0].text) == ("Title 1", "green apple tree")
        assert (await client.search("of the", 5)).documents == ()
        info = await client.info()
    assert info["documents"] == 3
    assert info["implementation"] == "numpy"


def test_it_tells_alive_from_ready(server: RunningServer) -> None:
    assert [get(f"{server.url}/{path}")[0] for path in ("health", "ready", "nowhere")] == [200, 200, 404]


def test_the_user_hears_of_a_faulty_corpus_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"bad\.jsonl: 1 faulty line\(s\): 1 \(no id\)"):
        start_server(tmp_path / "bad.jsonl", log=tmp_path / "log")


def test_another_failure_at_start_shows_the_log(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path, ["x"])
    with pytest.raises(InfrastructureError, match=r"ended with 1: .*no/such/folder"):
        start_server(corpus, log=tmp_path / "log", options=[f"announce={tmp_path}/no/such/folder"])


def test_a_log_that_is_shown_carries_no_colours(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("first\n\x1b[1;31mBad\x1b[0m thing\x07\n")
    assert child._tail(tmp_path / "log") == "first | Bad thing"


@pytest.mark.parametrize("dialect", ["retrieve", "batch_search", "api_search"])
async def test_the_client_speaks_every_dialect_of_the_server(server: RunningServer, dialect: Any) -> None:
    async with RetrievalClient(ClientConfig(urls=(server.url,), dialect=dialect)) as client:
        found, nothing = await asyncio.gather(client.search("green apples", 2), client.search("of", 2))
    assert [(d.id, d.title, d.text) for d in found.documents] == [
        ("1", "Title 1", "green apple tree"),
        ("0", "Title 0", "red apple"),
    ]
    assert found.documents[0].score > found.documents[1].score
    assert nothing.documents == ()


async def test_two_shards_with_two_replicas_answer_exactly_as_one_server(tmp_path: Path) -> None:
    rng = random.Random(1)
    corpus = write_corpus(tmp_path, [" ".join(rng.choices(WORDS, k=6)) for _ in range(101)])
    queries = [" ".join(rng.choices(WORDS, k=3)) for _ in range(30)]
    with ExitStack() as stack:
        one = stack.enter_context(start_server(corpus, log=tmp_path / "one.log"))
        fleet = await asyncio.to_thread(start_here, FleetConfig(corpus, replicas=2, shards=2), tmp_path, stack)
        expected = await search_all([one], queries)
        assert len({document.score for result in expected for document in result}) < sum(map(len, expected))
        assert await search_all(fleet, queries) == expected
        for server in (fleet[0], fleet[3]):
            server.process.kill()
            assert await search_all(fleet, queries) == expected


def test_keys_of_a_server_go_to_all_servers_of_a_fleet() -> None:
    config = parse_fleet(["corpus=c.jsonl", "replicas=2", "topk=5", "rerank.model=m"])
    assert config.layouts() == [["shard=0", "shards=1", "topk=5", "rerank.model=m"]] * 2
    for words, message in (
        (["port=1"], "port: a fleet chooses it"),
        (["topk=x"], "topk: expected int"),
        (["nonsense"], "nonsense: write key=value"),
        (["shards=2", "rerank.model=m"], "shards: only backend=bm25"),
        (["replicas=0"], "replicas=0: write 1 or more"),
    ):
        with pytest.raises(UserError, match=message):
            parse_fleet(["corpus=c.jsonl", *words])


@pytest.mark.slow
async def test_ray_places_servers_on_its_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setenv(TOKEN_VARIABLE, "s3cret")
    corpus = write_corpus(tmp_path, ["red apple", "green apple tree", "blue sky"])
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        with ExitStack() as stack:
            urls = await asyncio.to_thread(start_on_ray, FleetConfig(corpus, shards=2), tmp_path, stack)
            async with RetrievalClient(ClientConfig(urls=tuple(urls))) as client:
                result = await client.search("apples", 5)
                assert {document.id for document in result.documents} == {"0", "1"}
    finally:
        ray.shutdown()


async def search_all(servers: list[RunningServer], queries: list[str]) -> list[tuple[Document, ...]]:
    async with RetrievalClient(ClientConfig(urls=tuple(server.url for server in servers))) as client:
        return [(await client.search(query, 7)).documents for query in queries]


def test_a_port_in_use_is_one_clear_line(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path, ["x"])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_server(f"corpus={corpus}", f"port={port}")
    assert done.returncode == 2
    assert done.stderr == f"error: port {port} on 127.0.0.1 is in use; stop what listens there or give port=N\n"


@pytest.mark.parametrize(
    ("word", "message"), [("nonsense", "write key=value"), ("portt=1", "portt"), ("port=x", "port")]
)
def test_bad_arguments_are_one_line(word: str, message: str) -> None:
    done = run_server("corpus=x.jsonl", word)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def run_server(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "search_agent.retrieval.server", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_sigterm_ends_it_without_an_error(tmp_path: Path) -> None:
    server = start_server(write_corpus(tmp_path, ["x"]), log=tmp_path / "log")
    os.kill(server.pid, signal.SIGTERM)
    assert server.process.wait(20) == 0
    server.stop()


def test_sigterm_ends_a_fleet_that_still_builds(tmp_path: Path) -> None:
    """The corpus is a pipe that nobody writes to: its servers never get ready, and it must not wait for them."""
    corpus = tmp_path / "corpus.jsonl"
    os.mkfifo(corpus)
    command = [sys.executable, "-m", "search_agent.retrieval.server.fleet", f"corpus={corpus}", "replicas=2"]
    fleet = subprocess.Popen(command, cwd=ROOT)
    try:
        pipe = open_when_read(corpus)
        os.kill(fleet.pid, signal.SIGTERM)
        assert fleet.wait(30) == 0
        os.close(pipe)
    finally:
        fleet.kill()
        fleet.wait()


def open_when_read(pipe: Path) -> int:
    deadline = time.monotonic() + 60
    while True:
        try:
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # nobody reads yet
            assert time.monotonic() < deadline
            time.sleep(0.05)


SLOW_ENGINE = """
import time
from dataclasses import dataclass
from pathlib import Path
from search_agent.retrieval.backends.backend import Hit

@dataclass(frozen=True)
class Config:
    folder: Path

def build(config, documents):
    return Engine(config.folder)

class Engine:
    max_batch = 1

    def __init__(self, folder):
        self.folder = folder

    def search(self, queries, k):
        (self.folder / "asked").touch()
        while not (self.folder / "go").exists():
            time.sleep(0.01)
        return [[Hit(0, 1.0, b'{"id":"0","contents":"late"}')] for _ in queries]

    def manifest(self):
        return {"name": "slow"}

    def implementation(self):
        return "slow"
"""


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.01)


async def test_sigterm_lets_a_request_under_way_finish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow_backend.py").write_text(SLOW_ENGINE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    options = ["backend.plugin=slow_backend", f"backend.folder={tmp_path}"]
    with start_server(None, log=tmp_path / "log", options=options) as server:
        async with RetrievalClient(ClientConfig(urls=(server.url,), retries=0)) as client:
            search = asyncio.ensure_future(client.search("x", 1))
            await asyncio.to_thread(wait_for, tmp_path / "asked")
            os.kill(server.pid, signal.SIGTERM)
            await asyncio.sleep(0.3)
            assert server.process.poll() is None
            with pytest.raises(InfrastructureError):  # no new connection is taken
                async with RetrievalClient(ClientConfig(urls=(server.url,), retries=0)) as other:
                    await other.search("y", 1)
            (tmp_path / "go").touch()
            assert (await search).documents[0].text == "late"
        assert await asyncio.to_thread(server.process.wait, 20) == 0


def test_it_dies_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path, ["x"])
    program = (
        "import sys, time; from pathlib import Path; from search_agent.retrieval.server.child import start_server\n"
        "print(start_server(Path(sys.argv[1]), log=Path(sys.argv[2])).pid, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", program, str(corpus), str(tmp_path / "log")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.kill()
    deadline = time.monotonic() + 20
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(pid)


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False
