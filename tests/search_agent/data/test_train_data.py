"""Data that a run cannot use is named before anything is started."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from search_agent.console.command import load_config
from search_agent.data import files
from search_agent.data.inputs import find_source, model_path
from search_agent.data.source import Source, Split
from search_agent.planning.lengths import check_lengths
from verl.config.build import Plugin
from verl.data.tasks import Task
from verl.errors import UserError


def test_a_corpus_that_is_not_there_is_named(tmp_path: Path) -> None:
    own = files.Config(train="a.jsonl", dev="b.jsonl", test="c.jsonl", corpus=str(tmp_path / "none.jsonl"))
    config = replace(load_config([]), data=Plugin("search_agent.data.files", own))
    with pytest.raises(UserError, match=r"data\.corpus=.*none\.jsonl: no such file"):
        find_source(config)
    without = replace(config, data=Plugin("search_agent.data.files", replace(own, corpus=None)))
    with pytest.raises(UserError, match=r"retriever=embedded has no corpus to serve for train, dev, test"):
        find_source(without)
    assert find_source(replace(without, retriever="http://a:1")).test.tasks == Path("c.jsonl")


def test_prompts_that_are_too_long_are_all_named_before_the_run(tmp_path: Path) -> None:
    words = Tokenizer(models.WordLevel({"w": 0, "?": 1}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))
    config = load_config([])
    environment = replace(config.environment, config=replace(config.environment.config, max_prompt_tokens=8))
    config = replace(config, environment=environment)

    def tasks(*lengths: int) -> list[Task]:
        return [Task(f"t{n}", "q", ("a",), prompt=" ".join(["w"] * n)) for n in lengths]

    check_lengths({"train": tasks(1, 4, 8)}, config, str(tmp_path))
    with pytest.raises(UserError) as refused:
        check_lengths({"train": tasks(8, 9, 1000), "test": tasks(12)}, config, str(tmp_path))
    assert str(refused.value).splitlines()[:2] == [
        "train: 2 of 3 prompts have more than 8 tokens (t9: 9, t1000: 1,000)",
        "test: 1 of 1 prompts have more than 8 tokens (t12: 12)",
    ]
    rendered = [Task("own", "a question", ("a",))]
    with pytest.raises(UserError, match=r"train: 1 of 1 prompts"):
        check_lengths({"train": rendered}, config, str(tmp_path))
    (tmp_path / "tokenizer.json").unlink()
    check_lengths({"train": tasks(1000)}, config, str(tmp_path))  # found when it is played


def test_the_embedded_model_needs_the_embedded_data() -> None:
    nowhere = Split(Path("a.jsonl"))
    with pytest.raises(UserError, match="model=embedded goes with data=embedded"):
        model_path(load_config([]), Source(nowhere, nowhere, nowhere))
