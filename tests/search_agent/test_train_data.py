"""Data that a run cannot use is named before anything is started."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from search_agent import files
from search_agent.command import load_config
from search_agent.inputs import find_source, model_path
from search_agent.source import Source, Split
from verl.config.build import Plugin
from verl.errors import UserError


def test_a_corpus_that_is_not_there_is_named(tmp_path: Path) -> None:
    own = files.Config(train="a.jsonl", dev="b.jsonl", test="c.jsonl", corpus=str(tmp_path / "none.jsonl"))
    config = replace(load_config([]), data=Plugin("search_agent.files", own))
    with pytest.raises(UserError, match=r"data\.corpus=.*none\.jsonl: no such file"):
        find_source(config)
    without = replace(config, data=Plugin("search_agent.files", replace(own, corpus=None)))
    with pytest.raises(UserError, match=r"retriever=embedded has no corpus to serve for train, dev, test"):
        find_source(without)
    assert find_source(replace(without, retriever="http://a:1")).test.tasks == Path("c.jsonl")


def test_the_embedded_model_needs_the_embedded_data() -> None:
    nowhere = Split(Path("a.jsonl"))
    with pytest.raises(UserError, match="model=embedded goes with data=embedded"):
        model_path(load_config([]), Source(nowhere, nowhere, nowhere))
