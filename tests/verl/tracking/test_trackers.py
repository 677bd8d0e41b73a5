"""Metrics reach each tracker, survive a kill, and are cut back to the step a run resumes at."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from verl.errors import UserError
from verl.tracking import make_tracker
from verl.tracking.base import Combined
from verl.tracking.config import TrackingConfig
from verl.tracking.console import ConsoleTracker
from verl.tracking.jsonl import JsonlTracker, read_metrics

STEP = {"reward": 0.4123, "em": 0.5, "searches": 1.5, "tokens_per_s": 1532.0, "grad_norm": 3.0}


class Clock:
    """Time that moves when told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_metrics_are_readable_at_once_and_not_finite_numbers_are_null(tmp_path: Path) -> None:
    tracker = JsonlTracker(tmp_path / "m.jsonl")
    tracker.log(1, {"loss": 0.5, "ratio": float("nan")})
    (row,) = read_metrics(tmp_path / "m.jsonl")
    assert (row["step"], row["loss"], row["ratio"]) == (1, 0.5, None)
    tracker.close()


def test_a_resumed_run_forgets_what_came_after(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    first = JsonlTracker(path)
    for step in (1, 2, 3):
        first.log(step, {"loss": float(step)})
        first.log(step, {"dev": 0.0})
    with path.open("a") as file:
        file.write('{"step": 4, "lo')
    resumed = JsonlTracker(path)
    resumed.log(3, {"loss": 30.0})
    resumed.log(3, {"dev": 1.0})
    assert [row["step"] for row in read_metrics(path)] == [1, 1, 2, 2, 3, 3]
    assert read_metrics(path)[-2]["loss"] == 30.0


def test_a_run_that_goes_on_with_a_steps_evaluation_keeps_the_step(tmp_path: Path) -> None:
    """The checkpoint at the end of the warm-up lies between the last step's row and the first evaluation's."""
    path = tmp_path / "m.jsonl"
    first = JsonlTracker(path)
    for step in (11, 12):
        first.log(step, {"warmup/loss": float(step)})
    first.log(12, {"dev/em": 0.0})
    first.log(13, {"loss": 1.0})
    JsonlTracker(path).log(12, {"dev/em": 0.5})
    assert [sorted(row.keys() - {"time"}) for row in read_metrics(path)] == [
        ["step", "warmup/loss"],
        ["step", "warmup/loss"],
        ["dev/em", "step"],
    ]
    assert read_metrics(path)[-1]["dev/em"] == 0.5


def test_a_line_broken_in_the_middle_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\nbroken\n{"step": 2}\n')
    with pytest.raises(ValueError, match="line 2"):
        read_metrics(path)


def test_no_line_is_lost_when_the_process_is_killed(tmp_path: Path) -> None:
    code = (
        "import os, sys, pathlib; from verl.tracking.jsonl import JsonlTracker\n"
        "tracker = JsonlTracker(pathlib.Path(sys.argv[1]))\n"
        "for step in range(20): tracker.log(step, {'x': 1.0})\n"
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "m.jsonl")], check=False)
    assert len(read_metrics(tmp_path / "m.jsonl")) == 20


def console_lines(steps: list[tuple[int, dict[str, float]]], clock: Clock) -> list[str]:
    out = io.StringIO()
    tracker = ConsoleTracker(12, 10, console=Console(file=out, width=200, highlight=False), clock=clock)
    for step, metrics in steps:
        tracker.log(step, metrics)
        clock.now += 2.0
    tracker.close()
    return out.getvalue().splitlines()


def test_plain_lines_show_the_numbers_of_a_step_and_the_time_left() -> None:
    lines = console_lines([(11, STEP), (12, STEP)], Clock())
    assert lines == [
        "step 1/2  reward 0.412  EM 0.500  searches 1.50  tokens/s 1,532  ETA -",
        "step 2/2  reward 0.412  EM 0.500  searches 1.50  tokens/s 1,532  ETA 0:00",
    ]


def test_quick_warm_up_steps_share_lines_but_the_last_is_shown() -> None:
    steps = [(step, {"warmup/loss": 1.0}) for step in range(1, 11)]
    lines = console_lines(steps, Clock())
    assert [line.split()[1] for line in lines] == ["1/10", "6/10", "10/10"]
    assert lines[1].endswith("ETA 0:08")


def test_an_evaluation_is_one_line() -> None:
    assert console_lines([(11, {"dev/greedy/em": 0.975, "dev/sampled/em": 0.57, "dev/sampled/f1": 0.6})], Clock()) == [
        "dev at step 1: greedy EM 0.975, sampled EM 0.570"
    ]


def test_a_terminal_gets_a_live_bar_without_colour_where_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    out = io.StringIO()
    tracker = ConsoleTracker(2, console=Console(file=out, force_terminal=True, force_interactive=True, width=150))
    tracker.log(1, STEP)
    tracker.close()
    assert "1/2  reward 0.412" in out.getvalue()
    assert "\x1b[3" not in out.getvalue()


def test_one_tracker_that_fails_to_close_does_not_keep_the_others_open() -> None:
    closed: list[str] = []

    class Probe:
        def __init__(self, name: str, fails: bool) -> None:
            self.name, self.fails = name, fails

        def log(self, step: int, metrics: object) -> None: ...

        def close(self) -> None:
            closed.append(self.name)
            if self.fails:
                raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        Combined([Probe("a", False), Probe("b", True), Probe("c", False)]).close()
    assert closed == ["c", "b", "a"]


def test_a_tracker_whose_package_is_missing_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"tracking\.wandb=true needs the package wandb"):
        make_tracker(tmp_path, total_steps=1, config=TrackingConfig(wandb=True))


def test_tensorboard_hides_what_came_after_the_resumed_step(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = TrackingConfig(console=False, tensorboard=True)
    for steps, value in (((1, 2, 3), 1.0), ((3,), 2.0)):
        tracker = make_tracker(tmp_path, total_steps=3, config=config)
        for step in steps:
            tracker.log(step, {"reward": value})
        tracker.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("reward")] == [(1, 1.0), (2, 1.0), (3, 2.0)]


def test_wandb_offline_keeps_its_id_and_leaves_the_users_variables_alone(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    code = (
        "import json, pathlib, psutil, sys\n"
        "from verl.tracking import make_tracker\n"
        "from verl.tracking.config import TrackingConfig\n"
        "tracker = make_tracker(pathlib.Path(sys.argv[1]), total_steps=1, run_config={'seed': 1},\n"
        "                       config=TrackingConfig(console=False, wandb=True, project='ours'))\n"
        "tracker.log(1, {'reward': 0.5}); run = tracker._trackers[1]._run\n"
        "told = [run.id, run.project, run.settings.mode]; tracker.close()\n"
        "print(json.dumps([*told, len(psutil.Process().children(recursive=True))]))\n"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    environment |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "HOME": str(tmp_path)}
    seen = []
    for extra in ({}, {"WANDB_PROJECT": "theirs"}):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], env=environment | extra, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        seen.append(json.loads(done.stdout.splitlines()[-1]))
    assert seen[0][0] == seen[1][0] == (tmp_path / "wandb_id").read_text()
    assert [row[1:] for row in seen] == [["ours", "offline", 0], ["theirs", "offline", 0]], "no process is left"
