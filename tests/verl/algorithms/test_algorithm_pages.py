"""The pages cannot rot: keys they name exist, commands they show are accepted, every algorithm has its place."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest

from verl.algorithms.config import AdvantageName, LossName
from verl.learner.config import LearnerConfig
from verl.trainer.config import TrainerConfig

DOCS = Path(__file__).parents[3] / "docs"
PAGES = sorted((DOCS / "algorithms").glob("*.md"))
ROOTS: dict[str, Any] = {"trainer": TrainerConfig, "learner": LearnerConfig}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_key_on_a_page_exists(page: Path) -> None:
    for key in set(re.findall(r"\b(?:trainer|learner)(?:\.[a-z_]+)+", page.read_text())):
        root, *names = key.split(".")
        hint = ROOTS[root]
        for name in names:
            if get_origin(hint) is Mapping:  # of names that the user chooses
                break
            assert dataclasses.is_dataclass(hint), f"{key}: {hint} has no keys"
            hints = get_type_hints(hint)
            assert name in hints, f"{key} does not exist"
            hint = hints[name]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_shows_how_to_choose_what_it_describes(page: Path) -> None:
    assert re.search(r"^bash cmd/train\.sh .*$", page.read_text(), flags=re.MULTILINE)


def test_every_algorithm_is_in_the_index_and_every_link_leads_to_a_page() -> None:
    index = (DOCS / "algorithms.md").read_text()
    for name in (*get_args(AdvantageName), *get_args(LossName)):
        assert f"`{name}`" in index
    linked = {DOCS / link for link in re.findall(r"\((algorithms/[a-z_]+\.md)\)", index)}
    assert linked == set(PAGES)
