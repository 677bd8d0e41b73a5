"""RARE's model behind an API, by its recipe: the published rules read each answer, and every task counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from search_agent import evaluate
from tests.search_agent.scripted_server import Scripted
from tests.verl.tiny_vl import write_picture

SAID = [
    "<think> so </think>\n<answer>B</answer>",
    "B. as the text has it",
    "Answer: A",
    "",
    "I cannot say",
    "<answer>B",
]


def test_the_denominator_is_every_task_that_was_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_picture(tmp_path / "a.png", "red")
    rows = [
        {"id": n, "question": "q", "prompt": f"<{n}>", "golden_answers": ["B"], "images": ["a.png"]} for n in range(6)
    ]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def policy(prompt: str) -> str:
        return next(said for n, said in enumerate(SAID) if f"<{n}>" in prompt)

    server = Scripted(policy)
    files = [f"data.{split}={tmp_path / 'test.jsonl'}" for split in ("train", "dev", "test")]
    served = [f"endpoint={server.start()}", "endpoint_model=m", "endpoint_api=chat"]
    monkeypatch.setattr(evaluate, "RUNS", tmp_path / "runs")
    assert evaluate.main(["recipe=rare_mmrait", *served, *files]) == 0
    [folder] = (tmp_path / "runs").iterdir()
    found: dict[str, Any] = json.loads((folder / "evaluation.json").read_text())
    assert (found["greedy"]["n"], found["greedy"]["em"]) == (6, pytest.approx(2 / 6))
    # As published: sampled by temperature, top-p and top-k, with the pictures in the message.
    sampled = [asked for asked in server.asked if asked["temperature"] == 0.6]
    assert [(asked["top_p"], asked["top_k"]) for asked in sampled] == [(0.7, 50)] * 6
    assert all(asked["messages"][0]["content"][0]["type"] == "image_url" for asked in server.asked)
