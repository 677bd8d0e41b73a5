"""Every command of docs/evaluation.md that reads saved episodes is run."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from tests.search_agent.viewer.support import ASHBY, search_episode, write_run

PAGE = Path(__file__).resolve().parents[3] / "docs" / "evaluation.md"
COMMANDS = re.findall(r"^    python -m (search_agent\.\S+) ([^#\n]*)", PAGE.read_text(), re.MULTILINE)


def test_the_page_has_commands() -> None:
    assert {module for module, _ in COMMANDS} == {
        "search_agent.evaluation.compare",
        "search_agent.evaluation.report",
        "search_agent.evaluation.flashrag",
        "search_agent.viewer",
    }


@pytest.mark.parametrize(("module", "arguments"), COMMANDS)
def test_a_command_of_the_page_runs(module: str, arguments: str, tmp_path: Path) -> None:
    rows = [(ASHBY, search_episode(ASHBY, 0, answer="Ashby"))]
    run = write_run(tmp_path / "run", {("test-before-greedy", 0): rows, ("test-after-greedy", 0): rows})
    given = re.sub(r"\[RUN \.\.\.\]", "", arguments)
    given = re.sub(r"\b(RUN_[AB]|RUN|BEFORE|AFTER|runs/[AB]\d?)\b", str(run), given)
    words = given.replace("FOLDER", str(tmp_path / "new")).replace("found.json", str(tmp_path / "found.json")).split()
    if "--serve" in words:
        importlib.import_module(f"{module}.__main__").read_arguments(words)
        return
    package = importlib.import_module(module)
    command = importlib.import_module(f"{module}.__main__") if hasattr(package, "__path__") else package
    assert command.main(words) == 0
