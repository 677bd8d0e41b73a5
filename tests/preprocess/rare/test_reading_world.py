"""The world whose documents stand in the prompt: what is asked, shown and taught."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from preprocess.rare.world import Config, build
from search_agent.data.source import Source


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Source]:
    out = tmp_path_factory.mktemp("reading")
    sizes: dict[str, Any] = {"dev_questions": 20, "test_questions": 40, "traces": 400}
    return {shown: build(Config(documents=shown, labelled=True, **sizes), out=out, seed=3) for shown in (True, False)}


def rows(path: Path | None) -> list[dict[str, Any]]:
    assert path is not None
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_answer_stands_in_the_prompt_and_only_there(sources: dict[bool, Source]) -> None:
    for split in ("train", "dev", "test"):
        for shown, source in sources.items():
            for task in source.splits[split].load():
                assert task.prompt is not None
                assert (task.golden_answers[0] in task.prompt) == shown
                assert task.question in task.prompt


def test_both_worlds_have_one_model_and_one_teacher(sources: dict[bool, Source]) -> None:
    opened, closed = sources[True], sources[False]
    assert opened.model is not None
    assert closed.model is not None
    for name in ("tokenizer.json", "model.safetensors"):
        assert (opened.model / name).read_bytes() == (closed.model / name).read_bytes()
    said = [[(row["predict"], row["label"]) for row in rows(source.traces)] for source in (opened, closed)]
    assert said[0] == said[1]


def test_a_label_says_whether_the_teacher_was_right_and_it_is_not_always(sources: dict[bool, Source]) -> None:
    labels = [row["label"] for row in rows(sources[True].traces)]
    assert 0.6 < sum(labels) / len(labels) < 0.95
    bare = sources[True].traces
    assert bare is not None
    assert all(set(row) == {"instruction", "predict"} for row in rows(bare.with_name("traces.jsonl")))


def test_no_taught_fact_holds_in_the_clean_test(sources: dict[bool, Source]) -> None:
    tested = {line for row in rows(sources[True].test.tasks) for line in facts(row["prompt"])}
    taught = {line for row in rows(sources[True].traces) for line in facts(row["instruction"])}
    assert tested
    assert tested.isdisjoint(taught)


def facts(prompt: str) -> list[str]:
    """The sentences of a prompt's documents that questions ask for."""
    said = [line.partition(": ")[2] for line in prompt.splitlines() if line.startswith("Doc ")]
    return [sentence for sentence in said if " is a city near " not in sentence]
