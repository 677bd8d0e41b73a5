"""Asking shows each segment as it comes, and keeps the screen free of what libraries print."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from search_agent.ask import Shown, apart_from_logs, main, spinner, split_arguments
from verl.data.tasks import Task
from verl.errors import UserError
from verl.rollout.episode import EpisodeKey, run_episode
from verl.rollout.interfaces import Generation, Observation, Prompt, Sampling, Turn
from verl.trajectory import Outcome


class TwoTurns:
    """An environment that answers the first turn and ends after the second."""

    turns = 0

    async def start(self) -> Prompt:
        return Prompt([1], "ask ")

    def next_turn(self) -> Turn | None:
        self.turns += 1
        return Turn(4) if self.turns <= 2 else None

    async def observe(self, generation: Generation) -> Observation | None:
        return Observation([3], "read ") if self.turns == 1 else None

    def outcome(self) -> tuple[Outcome, str]:
        return "finished", ""


class Echo:
    """An engine that always says the same."""

    async def generate(self, token_ids: Sequence[int], turn: Turn, sampling: Sampling, seed: int) -> Generation:
        return Generation([2], "say ", [0.0], [0], "stop")


async def test_every_segment_is_shown_as_it_comes() -> None:
    shown: list[tuple[str, str]] = []

    def show(kind: str, text: str) -> None:
        shown.append((kind, text))

    key = EpisodeKey(0, "ask", 0, "ask", 0)
    trajectory = await run_episode(Task("a", "q", ("",)), key, TwoTurns(), Echo(), Sampling(), Shown(show))
    assert [(s.kind, s.text) for s in trajectory.segments] == shown
    assert "".join(text for _, text in shown) == "ask say read say "


def test_overrides_and_question_are_told_apart() -> None:
    arguments = ["model=runs/a", "who wrote", "x = y", "environment.top_k=2", "?"]
    assert split_arguments(arguments) == (["model=runs/a", "environment.top_k=2"], "who wrote x = y ?")
    about_energy = "E=mc2 was found by whom?"
    assert split_arguments([about_energy]) == ([], about_energy)
    assert split_arguments(["+recipe=research_mini", "who", "found", "E=mc2", "a.b=c?"])[1] == "who found E=mc2 a.b=c?"
    with pytest.raises(UserError, match="there is no question"):
        split_arguments(["model=runs/a"])


def test_a_model_that_cannot_be_served_is_named_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model=/nope: there is no such folder"):
        main(["model=/nope", "who?"])
    with pytest.raises(UserError, match=r"has no config\.json"):
        main([f"model={tmp_path}", "who?"])


def test_what_libraries_print_while_a_terminal_shows_the_spinner_stays_off_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    screen = io.StringIO()
    with spinner(Console(file=screen, force_terminal=True), "loading it"):
        print("noise")
        print("warning", file=sys.stderr)
    assert "loading it" in screen.getvalue()
    assert "noise" not in screen.getvalue()
    assert "warning" not in screen.getvalue()
    assert capsys.readouterr() == ("noise\n", "warning\n")


def test_only_what_is_meant_for_the_screen_reaches_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log"
    with apart_from_logs(log) as screen:
        os.write(1, b"noise ")
        os.write(2, b"warning ")
        screen.write("answer")
    os.write(1, b" after")
    assert capfd.readouterr().out == "answer after"
    assert log.read_text() == "noise warning "
