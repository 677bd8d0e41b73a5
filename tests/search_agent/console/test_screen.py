"""What users name (keys, data sets, modules, titles, paths) is shown as it is, on the screen and in pictures."""

from __future__ import annotations

import ast
import io
import json
from pathlib import Path

import pytest

from search_agent.console.command import load_config
from search_agent.console.report import evaluation_table
from search_agent.console.screen import say, screen
from search_agent.grid import report as grid_report
from search_agent.grid.members import Member
from search_agent.rescore import table as rescored_table

ROOT = Path(__file__).resolve().parents[3]
NAMES = ["[q_proj]", "[/b]", "[bold]x[/bold]", ":smile:", "$x$", r"$\q$", "{0} %s", "_hidden"]


def shown(what: object) -> str:
    stream = io.StringIO()
    console = screen(stream)
    console.width = 400
    console.print(what)
    return stream.getvalue()


@pytest.mark.parametrize("name", NAMES)
def test_titles_and_data_sets_are_shown_as_they_are(name: str) -> None:
    result = {"n": 2, "em": 0.5, f"em/{name}": 0.5, f"em/{name}_n": 2}
    text = shown(evaluation_table(f"runs/{name}", {name: {"greedy": result, "sampled": result}}))
    assert text.count(name) == 4, text
    assert name in shown(rescored_table(f"{name}, scored by", {f"{name}_000001.jsonl.gz": []}))
    stream = io.StringIO()
    say(screen(stream), f"run folder: runs/{name}")
    assert stream.getvalue() == f"run folder: runs/{name}\n"


@pytest.mark.parametrize("name", NAMES)
def test_a_grid_is_reported_and_drawn_whatever_its_values_are_called(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config([])
    members = [Member((), (f"learner.lora.targets={name}",), tmp_path / str(number), config) for number in range(2)]
    members[0].folder.mkdir()
    (members[0].folder / "metrics.jsonl").write_text('{"step": 1, "reward": 0.5}\n')
    scores = {"greedy": {"em": 0.5}, "sampled": {"em": 0.5}}
    (members[0].folder / "summary.json").write_text(json.dumps({"before": scores, "after": scores}))
    grid_report.report_grid(tmp_path, members)
    out = "".join(capsys.readouterr().out.split())
    assert f"noresult:learner.lora.targets={''.join(name.split())}" in out
    assert (tmp_path / "curves.png").stat().st_size > 0


def test_there_is_one_place_that_makes_a_console() -> None:
    """A console made elsewhere would read texts as markup; the tracker's shows no text of a user's."""
    made = [
        path.relative_to(ROOT).as_posix()
        for room in ("search_agent", "verl", "preprocess")
        for path in (ROOT / room).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "Console"
    ]
    assert sorted(made) == ["search_agent/console/screen.py", "verl/tracking/console.py"]
