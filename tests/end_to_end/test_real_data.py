"""The same loop on files in FlashRAG's layout and a real corpus; the questions are far too hard for the tiny model."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from preprocess.embedded.source import Config as EmbeddedConfig
from preprocess.embedded.source import build
from search_agent.agent import AgentSpec
from search_agent.console.command import load_config
from search_agent.retrieval.server.child import start_server
from tests.end_to_end.support import ROOT, run
from verl.data.load import load_tasks
from verl.rollout.episode import EpisodeKey, run_episode
from verl.rollout.interfaces import Generation, Sampling, Turn
from verl.trainer.run_folder import RunFolder

DATA = os.environ.get("SLEUTH_TEST_DATA")
FOLDER = Path(DATA or ".").resolve()

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not DATA, reason="SLEUTH_TEST_DATA does not name a folder with wiki_mini/ and flashrag/"),
]

ENVIRONMENT = ("environment.max_observation_tokens=600", "environment.max_prompt_tokens=400")


def test_real_questions_and_a_real_corpus_go_through_the_whole_loop(tmp_path: Path) -> None:
    folder = FOLDER
    world = build(EmbeddedConfig(), out=ROOT / "data", seed=0)
    run(
        tmp_path / "run",
        "data=files",
        f"data.train={folder}/flashrag/hotpotqa/train.jsonl",
        f"data.dev={folder}/wiki_mini/hotpotqa.jsonl",
        f"data.test={folder}/wiki_mini/bamboogle.jsonl",
        f"data.corpus={folder}/wiki_mini/corpus.jsonl",
        f"data.traces={world.traces}",
        f"model={world.model}",
        "trainer.steps=2",
        "rollout.engine.max_context_tokens=1024",
        *ENVIRONMENT,
    )
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["steps"] == 2
    assert summary["aborted"] == 0
    questions = {task.id: task.question for task in load_tasks(folder / "flashrag" / "hotpotqa" / "train.jsonl")}
    episodes = [t for step in (1, 2) for t in RunFolder(tmp_path / "run").read_trajectories("train", step)]
    assert len(episodes) == 32
    assert all(questions[episode.task_id].strip() in episode.segments[0].text for episode in episodes)
    assert all(len(episode) <= 1024 for episode in episodes)
    assert "13,915 passages" in (tmp_path / "run" / "logs" / "retriever_0.log").read_text()


def corpus_texts(path: Path) -> dict[str, str]:
    """The text of each passage, without its title, by id."""
    rows = [json.loads(row) for row in path.read_text().splitlines()]
    return {row["id"]: row["contents"].partition("\n")[2] for row in rows}


class Scripted:
    """Writes what a good policy would: search for the question, then answer with what it was given."""

    def __init__(self, tokenizer: AutoTokenizer, question: str, answer: str) -> None:
        self._encode = tokenizer.encode
        self._texts = [f"<think> I look. </think>\n<search> {question} </search>", f"<answer> {answer} </answer>"]

    async def generate(self, token_ids: Sequence[int], turn: Turn, sampling: Sampling, seed: int) -> Generation:
        text = self._texts.pop(0)
        ids = self._encode(text, add_special_tokens=False)
        return Generation(ids, text, [-1.0] * len(ids), [0] * len(ids), "stop")


async def test_a_search_in_a_real_corpus_shows_whole_real_passages(tmp_path: Path) -> None:
    folder = FOLDER
    tokenizer = AutoTokenizer.from_pretrained(build(EmbeddedConfig(), out=ROOT / "data", seed=0).model)
    config = load_config(
        [*ENVIRONMENT, "environment.max_tokens_per_turn=400", "rollout.engine.max_context_tokens=2048"]
    )
    texts = corpus_texts(folder / "wiki_mini" / "corpus.jsonl")
    shown = 0
    with start_server(folder / "wiki_mini" / "corpus.jsonl", log=tmp_path / "server.log") as server:
        urls = {"train": [server.url]}
        spec = AgentSpec(config.protocol, config.environment, config.reward, config.client, urls, 2048)
        agent = spec(tokenizer)
        await agent.open()
        for task in load_tasks(folder / "wiki_mini" / "hotpotqa.jsonl")[:20]:
            engine = Scripted(tokenizer, task.question, task.golden_answers[0])
            key = EpisodeKey(0, "test", 0, task.id, 0)
            episode = await run_episode(task, key, agent.environment(task, "train"), engine, Sampling())
            assert episode.outcome == "finished", episode.reason
            assert (await agent.score(task, episode)).reward == 1.0
            observation = next(segment for segment in episode.segments if segment.kind == "observation")
            assert len(observation) <= 600
            for result in episode.calls[0].results:
                assert texts[result.id].strip() in observation.text
                shown += 1
        await agent.close()
    assert shown >= 20
