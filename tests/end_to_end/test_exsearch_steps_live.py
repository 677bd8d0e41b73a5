"""ExSearch's published steps one after another, by the commands that a user types, against a live search server."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from preprocess.embedded.source import Config, build
from search_agent.data.source import Source
from search_agent.exsearch.chats import messages_of
from search_agent.protocols import exsearch
from search_agent.protocols.framing import make_framing
from search_agent.retrieval.server.child import start_server
from tests.end_to_end.support import ROOT
from verl.trajectory import Trajectory

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(900)]

QUESTIONS = 8


def published_warmup(source: Source) -> list[dict[str, Any]]:
    """The world's traces as the list of messages that their warm-up file is."""
    protocol = exsearch.build(exsearch.Config(instruction="short"))
    tokenizer = AutoTokenizer.from_pretrained(source.model)
    framing = make_framing("chat_turns", tokenizer, system=None, probe=protocol.prompt("who?"))
    assert source.traces is not None
    records = map(json.loads, source.traces.read_text().splitlines())
    return [{"messages": messages_of(Trajectory.from_record(record), framing)} for record in records]


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_the_published_steps_make_a_second_model_from_a_warm_up_file(tmp_path: Path) -> None:
    source = build(Config(style="exsearch", traces=200), out=tmp_path / "world", seed=0)
    (tmp_path / "warmup.json").write_text(json.dumps(published_warmup(source)))
    tasks = source.train.load()[:QUESTIONS]
    rows = [{"query_id": task.id, "question": task.question, "answer": task.golden_answers[0]} for task in tasks]
    (tmp_path / "questions.json").write_text(json.dumps(rows))
    recipe = [
        *("recipe=quickstart", "data=files", "protocol=exsearch_short", "reward=em", "environment.framing=chat_turns"),
        *(f"data.{name}={split.tasks}" for name, split in source.splits.items()),
        *("evaluation.dev_tasks=2", "evaluation.test_tasks=2"),
    ]
    training = ["--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "4", "--deepspeed", "ds.json"]
    training += ["--learning_rate", "1e-3", "--num_train_epochs", "1.0", "--bf16", "True"]
    assert source.train.corpus is not None

    def step(procedure: str, *words: str) -> None:
        environment = {**os.environ, "PROCEDURE": procedure, "API_SEARCH": server.url}
        command = ["bash", "cmd/exsearch.sh", *words]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{procedure}: {done.stdout[-2000:]}\n{done.stderr[-2000:]}"

    def folder(name: str) -> str:
        return str(tmp_path / name)

    made = tmp_path / "epoch1"
    played, costs = made / f"{tmp_path.name}_questions.agent0.inference.0.60000.json", made / "epo_1.entropy.0.8.json"
    file, again = f"--inference_file={played}", f"--output_dir={made}"
    agent0 = f"--model_name_or_path={folder('agent0')}"
    with start_server(source.train.corpus, log=tmp_path / "server.log") as server:
        warm = [f"--dataset_name_or_path={folder('warmup.json')}", f"--output_dir={folder('agent0')}", *training]
        step("sft", f"--model_name_or_path={source.model}", *warm, *recipe)
        step("inference", f"--input_file={folder('questions.json')}", agent0, again, *recipe)
        step("entropy", file, agent0, again, "--left=0", "--right=8")
        step("formate", file, f"--entropy_file={costs}", again, "--size=100", "--is_rank", "True")
        step("reward", file, f"--output_dir={folder('rewarded')}", "--metric", "f1")
        (weighed,) = made.glob("epo1.training.len*.json")
        learned = [f"--dataset_name_or_path={weighed}", f"--output_dir={folder('agent1')}", *training]
        step("align", agent0, *learned, *recipe)
    output = read(played)["output"]
    assert [row["query_id"] for row in output] == [task.id for task in tasks]
    answered = [row for row in output if row["finished"]]
    assert [row["query_id"] for row in read(costs)] == [row["query_id"] for row in answered]
    assert [row["messages"][-1]["content"] for row in read(weighed)] == [row["answer"] for row in answered]
    assert [row["prob"] for row in read(weighed)] == [row["log_probs"] for row in read(costs)]
    assert len(read(tmp_path / "rewarded" / f"epo1.training.len{len(answered)}.json")) == len(answered)
    first, second = (read(tmp_path / name / "summary.json") for name in ("agent0", "agent1"))
    assert first["weights_hash"] != second["weights_hash"], "the second was trained on from the first"
