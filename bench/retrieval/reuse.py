"""How many of the queries of grouped episodes reach the engine, with single flight and a cache, on the embedded task.

Episodes are simulated: eight samples a question, each searching for the subject and, where the question has two hops,
for the person found. A sample words a query as most do with probability 0.8, and leaves out one word of the question
otherwise; a policy that varies more repeats less. The real share of a run is in its metrics (``search/sent_queries``).
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from bench.harness import ROOT, Figure, main
from bench.retrieval import world
from search_agent.retrieval.client.client import RetrievalClient
from search_agent.retrieval.config import ClientConfig
from search_agent.retrieval.server.child import start_server

SAMPLES = 8
TASKS_AT_A_TIME = 16
USUAL = 0.8


def figures(quick: bool) -> Iterator[Figure]:
    """``--quick`` asks 64 questions, otherwise all."""
    folder = world.FOLDER / "embedded"
    if not (folder / "corpus.jsonl").exists():
        subprocess.run([sys.executable, "-m", "preprocess.embedded", f"out={folder}"], cwd=ROOT, check=True)
    with (folder / "train.jsonl").open() as file:
        tasks = [json.loads(line) for line in file][: 64 if quick else None]
    with tempfile.TemporaryDirectory() as scratch:
        corpus, log = folder / "corpus.jsonl", Path(scratch) / "log"
        with start_server(corpus, log=log) as server:
            flight = ClientConfig(urls=(server.url,))
            stored = ClientConfig(urls=(server.url,), cache="cache", cache_file=Path(scratch) / "answers.sqlite")
            asked, alone = asyncio.run(_run(flight, tasks))
            _, both = asyncio.run(_run(stored, tasks))
    yield Figure.at_most("queries that reach the engine, single flight and cache", both / asked, "of all", 0.5)
    yield Figure("queries that reach the engine, single flight alone", alone / asked, "of all")
    yield Figure("queries asked", asked, "")


async def _run(config: ClientConfig, tasks: list[dict[str, Any]]) -> tuple[int, int]:
    """(queries asked, queries sent)"""
    async with RetrievalClient(config) as client:
        for start in range(0, len(tasks), TASKS_AT_A_TIME):
            batch = tasks[start : start + TASKS_AT_A_TIME]
            await asyncio.gather(
                *[_episode(client, task, Random(f"{task['id']}/{n}")) for task in batch for n in range(SAMPLES)]
            )
        stats = client.stats()
    return stats["queries"], stats["sent_queries"]


async def _episode(client: RetrievalClient, task: dict[str, Any], rng: Random) -> None:
    question = task["question"].rstrip("?")
    subject = task["metadata"]["subject"]
    await asyncio.sleep(rng.random() * 0.01)  # samples of a group do not reach their searches at the same moment
    found = await client.search(_worded(subject, question, rng), 3)
    if task["metadata"]["hops"] == 2 and found.documents:
        await asyncio.sleep(rng.random() * 0.01)
        await client.search(_worded(task["metadata"]["supporting_ids"][-1].replace("-", " "), question, rng), 3)


def _worded(usual: str, question: str, rng: Random) -> str:
    words = question.split()
    left_out = rng.randrange(len(words))
    return usual if rng.random() < USUAL else " ".join(words[:left_out] + words[left_out + 1 :])


if __name__ == "__main__":
    main(figures)
