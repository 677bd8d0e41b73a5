"""The protocol that saved episodes are read with."""

from __future__ import annotations

from pathlib import Path

import pytest

from search_agent.evaluation.reading import protocol_of
from verl.errors import UserError


def test_a_runs_own_protocol_reads_it_whatever_else_its_configuration_says(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("gone: {old: 1}\nprotocol: {plugin: search_agent.protocols.search_r1}\n")
    assert protocol_of(tmp_path).name == "search_r1"


def test_episodes_alone_are_read_by_the_usual_tags(tmp_path: Path) -> None:
    assert protocol_of(tmp_path).name == "autorefine"


@pytest.mark.parametrize(
    "text",
    [
        "protocol: {plugin: search_agent.protocols.autorefine, gone: 1}",
        "name: x",
        "protocol: {plugin: no.such}",
        "- x",
        "{",
    ],
)
def test_what_cannot_be_read_is_named_with_its_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"config\.yaml"):
        protocol_of(tmp_path)
