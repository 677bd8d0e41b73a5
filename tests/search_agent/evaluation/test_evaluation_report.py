"""The report as Markdown and picture."""

from __future__ import annotations

from pathlib import Path

import pytest

from search_agent.evaluation.outcomes import read_outcomes
from search_agent.evaluation.report import main, markdown, read_arguments
from tests.search_agent.evaluation.test_compare import run, task
from verl.errors import UserError


def rows(text: str) -> dict[str, list[str]]:
    """The last table row of each first cell."""
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {first: rest for first, *rest in cells}


def test_a_report_says_scores_failures_evidence_and_differences(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = [task(name, "nq" if name < "c" else "hotpotqa") for name in "abcd"]
    folder = run(tmp_path / "mine", [(one, ["no"]) for one in tasks], "test-before-greedy")
    run(folder, [(one, [None if one.id == "a" else "yes"]) for one in tasks])
    run(folder, [(tasks[0], ["no"])], "train", 3)
    assert main([str(folder)]) == 0
    assert str(folder / "report.md") in capsys.readouterr().out
    assert (folder / "report.png").read_bytes().startswith(b"\x89PNG")
    text = (folder / "report.md").read_text()
    found = rows(text)
    assert "train" not in text
    assert found["mine test after greedy"] == ["1.000 (2)", "0.500 (2)", "0.750"]  # by data set, the sets' mean last
    assert r"| mine test after greedy | 4 | 1 | 0.750 \[0.301, 0.954\] |" in text  # Wilson's interval
    assert found["searches per question"] == ["0.00", "0.00"]
    assert found["EM"][:2] == ["0.000", "0.750"]
    assert "3 questions won, 0 lost; McNemar's exact test p = 0.25." in text


def test_two_runs_are_compared_at_the_same_stage(tmp_path: Path) -> None:
    runs = [run(tmp_path / name, [(task("x"), [name])], "eval-greedy") for name in ("no", "yes")]
    text = markdown([read_outcomes(folder) for folder in runs], "p.png")
    assert "### no eval greedy → yes eval greedy, 1 questions" in text


def test_names_are_no_markup(tmp_path: Path) -> None:
    evil = "a|b<script>`[x](y)"
    folder = run(tmp_path / evil, [(task("x", "set|one"), ["yes"]), (task("y", "two"), ["yes"])])
    text = markdown([read_outcomes(folder)], "p.png")
    assert r"a\|b\<script\>\`\[x\](y)" in text
    assert r"set\|one" in text
    assert "<script>" not in text.replace(r"\<script\>", "")


@pytest.mark.parametrize(
    ("arguments", "message"), [([], "name a run"), (["RUN", "ou=x"], "ou: no such option"), (["--x"], "--x: no such")]
)
def test_a_wrong_command_line_says_what_to_write(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_arguments(arguments)
