"""The commands for a card: without one they say so, and at a tiny size they run here."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from bench.__main__ import names, select
from bench.engine.plain import ASKED
from bench.gpu import card, loop
from bench.gpu.learner import figures
from bench.harness import ROOT, parse_figures
from bench.rollout import ceiling
from search_agent.console.command import load_config
from search_agent.planning.plan import make_plan
from verl.learner.__main__ import own_card
from verl.model_shape import EMBEDDED, read_shape
from verl.trajectory import Trajectory

NO_CARD = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
COMMANDS = ("learner", "engine", "loop", "two")


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"bench.gpu.{name}", *arguments]
    return subprocess.run(command, cwd=ROOT, env=NO_CARD, capture_output=True, text=True)


@pytest.mark.parametrize("name", COMMANDS)
def test_without_a_card_a_command_says_so_in_one_line_and_measures_nothing(name: str) -> None:
    done = run(name)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "nothing was measured" in done.stderr
    assert done.stdout == ""


def test_the_learners_command_runs_at_a_tiny_size() -> None:
    done = run("learner", "--quick")
    assert done.returncode == 0, done.stderr[-2000:]
    found = {figure.figure: figure for figure in parse_figures(done.stdout)}
    assert found["tiny: update"].value > 0
    assert found["tiny: loss, offloaded against not"].value == 0  # on a CPU nothing is offloaded
    assert all(row.holds is not False for row in found.values())


def test_a_run_of_all_benches_leaves_out_those_for_a_card() -> None:
    known = names()
    assert {f"gpu/{name}" for name in COMMANDS} <= set(known)
    assert not [name for name in select([], known) if name.startswith("gpu/")]
    assert select(["gpu/learner"], known) == ["gpu/learner"]


def test_what_does_not_fit_the_time_on_a_card_is_left_out_and_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert card.Clock().left_s > 3600  # a slow CPU leaves nothing out
    monkeypatch.setattr(card, "count", lambda: 1)
    monkeypatch.setattr(card, "BUDGET_S", 30.0)
    clock = card.Clock()
    assert list(clock.fitting([("short", 1.0), ("long", 60.0), ("brief", 2.0)])) == ["short", "brief"]
    assert "long: left out" in capsys.readouterr().out


def test_utilisation_is_judged_where_the_cards_peak_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {
        "tokens_per_second": 1e4,
        "tflops_per_rank": 98.9,
        "launches": 100,
        "loaded_gib": 1.0,
        "held_gib": 2.2,
        "peak_gib": 3.0,
        "predicted_gib": 2.0,
        "predicted_peak_gib": 3.1,
    }
    monkeypatch.setattr(card, "machine", lambda: "NVIDIA H200; torch 2.11")
    rows = {row.figure: row for row in figures("x", found, judged=True)}
    assert rows["x: model FLOPs utilisation of 989"].value == pytest.approx(0.1)
    assert rows["x: model FLOPs utilisation of 989"].holds is False
    assert rows["x: memory between steps, off the plan's"].holds is (2.2 / 2.0 - 1 <= 0.1)
    assert rows["x: memory at its peak, off the plan's"].holds is True
    monkeypatch.setattr(card, "machine", lambda: "a card that nobody knows")
    assert not [row for row in figures("x", found, judged=True) if "utilisation" in row.figure]


def test_each_rank_sees_its_own_card() -> None:
    assert [own_card(rank, None) for rank in (0, 1)] == ["0", "1"]
    assert [own_card(rank, "4,6") for rank in (0, 1)] == ["4", "6"]
    assert own_card(0, "") == own_card(2, "4,6") == ""


def test_packed_attention_and_the_head_are_compared_on_a_cpu_too() -> None:
    from bench.gpu import kernels

    torch.manual_seed(0)
    rows = {row.figure: row for row in kernels.attention(on_card=False)}
    assert all(row.value < 1e-5 for name, row in rows.items() if "off float64" in name)


def test_the_worker_is_judged_against_plain_vllm_that_gives_the_log_probs_too() -> None:
    plain = dict(zip(ASKED, (9.0, 12.0), strict=True))
    rows = {row.figure: row for row in ceiling.figures("x", 1000, 10.0, plain, judged=True)}
    assert [rows[f"x: worker / plain vLLM {asked}"].value for asked in ASKED] == pytest.approx([0.9, 1.2])
    assert [rows[f"x: worker / plain vLLM {asked}"].holds for asked in ASKED] == [True, None]
    assert rows["x: worker"].value == 100


def test_plain_vllm_gets_the_prompts_and_lengths_that_ours_had() -> None:
    trajectory = Trajectory("t", 0)
    trajectory.append_prompt([1, 2, 3], "p")
    trajectory.append_generated([4, 5], "g", [-1.0, -1.0], [0, 0], "stop")
    assert json.dumps(ceiling.requests_of([trajectory])) == "[[[1, 2, 3], 2]]"


@pytest.mark.parametrize("part", ["large", "quickstart", "split"])
def test_the_runs_on_a_card_compose_and_fit_an_h200(part: str) -> None:
    overrides, shape = [*loop.QUICKSTART], EMBEDDED
    if part != "quickstart":
        overrides, shape = loop.large(ROOT), read_shape("Qwen/Qwen2.5-1.5B")
    if part == "split":
        overrides += ["cluster.placement=split", "cluster.gpus_per_process=1", "trainer.max_staleness=1"]
    config = load_config([*overrides, "cluster.gpu_memory_gib=139"])
    assert make_plan(config, shape).problems == []


def test_a_runs_steps_are_read_without_the_first_and_judged() -> None:
    row = {"tokens": 1050.0, "policy_tokens": 900.0, "logprob_diff_max": 2e-5, "logprob_diff_mean": 1e-6}
    steps = [
        {**row, **{f"seconds/{part}": value for part in ("step", "rollout", "learn", "sync")}}
        for value in (50.0, 10.0, 14.0)
    ]
    found = {one.figure: one for one in loop.figures("large", steps, loop.large(ROOT), judged=True)}
    assert found["large: a step"].value == 12.0
    assert found["large: a step"].holds is True
    assert list(loop.figures("large", [], [], judged=True)) == []


def test_parts_are_chosen_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["x", "--quick", "parts=two,one"])
    assert card.parts(("one", "two", "three")) == ["two", "one"]
    monkeypatch.setattr(sys, "argv", ["x"])
    assert card.parts(("one", "two")) == ["one", "two"]
    monkeypatch.setattr(sys, "argv", ["x", "parts=four"])
    with pytest.raises(SystemExit, match="no part four"):
        card.parts(("one",))
