"""A grid runs every combination once, goes on where it was broken off, and reports failures too."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from search_agent.console.command import load_config, results_config
from search_agent.grid.members import Member, plan_grid
from search_agent.grid.report import mean_curve
from search_agent.grid.run import _capacity, run_grid
from verl.config.compose import to_yaml
from verl.errors import UserError

GRID = ["reward=em,f1", "trainer.steps=2", "seed=1,2,3"]


class Trainer:
    """Writes what a run would leave; fails where told."""

    def __init__(self, failing: str = "", interrupted: str = "") -> None:
        self.failing, self.interrupted = failing, interrupted
        self.made: list[tuple[str, ...]] = []

    def __call__(self, member: Member) -> int:
        if self.interrupted and self.interrupted in member.swept:
            return 130
        self.made.append(member.swept)
        if self.failing in member.swept:
            return 3
        score = {"em": 0.5 if "reward=em" in member.swept else 0.75}
        both = {"greedy": score, "sampled": score}
        member.folder.mkdir(parents=True, exist_ok=True)
        (member.folder / "config.yaml").write_text(to_yaml(results_config(member.config)))
        (member.folder / "metrics.jsonl").write_text('{"step": 1, "reward": 0.1}\n{"step": 2, "reward": 0.2}\n')
        (member.folder / "summary.json").write_text(json.dumps({"before": both, "after": both}))
        return 0


@pytest.fixture
def grid(tmp_path: Path) -> list[str]:
    return [*GRID, f"run_dir={tmp_path / 'grid'}"]


def test_every_combination_gets_its_own_folder_and_the_command_decides_which() -> None:
    folder, members = plan_grid(GRID)
    assert plan_grid(GRID)[0] == folder
    assert plan_grid(GRID[:2])[0] != folder
    assert len({member.folder for member in members}) == 6
    assert members[0].overrides == ("reward=em", "trainer.steps=2", "seed=1")
    assert members[0].folder == folder / "reward=em,seed=1"
    assert [member.setting for member in members] == ["reward=em"] * 3 + ["reward=f1"] * 3


def test_a_run_that_is_named_twice_is_refused_and_not_counted_twice() -> None:
    with pytest.raises(UserError) as error:
        plan_grid(["seed=1,2,1", "reward=em"])
    assert str(error.value) == "seed=1: stands in the grid more than once; write each value once"


def test_values_that_make_long_or_unsafe_names_still_get_different_folders() -> None:
    _, members = plan_grid(["name=a/b,a_b", "model='x y','x/y'"])
    names = {member.folder.name for member in members}
    assert len(names) == 4
    assert not any("/" in name or " " in name for name in names)


def test_a_fault_of_any_combination_is_found_before_the_first_run() -> None:
    with pytest.raises(UserError, match="reward=f2: no such preset"):
        plan_grid(["reward=em,f2", "seed=1,2"])


def test_a_grid_ends_with_mean_and_interval_of_each_setting(
    grid: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = Trainer()
    assert run_grid(grid, trainer) == 0
    assert len(trainer.made) == 6
    results = json.loads((tmp_path / "grid" / "results.json").read_text())
    assert results["reward=f1"] == {
        "runs": 3,
        "finished": 3,
        "values": {
            "before sampled em": [0.75] * 3,
            "after sampled em": [0.75] * 3,
            "after greedy em": [0.75] * 3,
            "after greedy em_two_hop": [],
        },
    }
    assert (tmp_path / "grid" / "curves.png").stat().st_size > 0
    assert "[0.50, 0.50]" in capsys.readouterr().out


def test_a_failed_run_is_reported_and_made_again_next_time(grid: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_grid(grid, Trainer(failing="seed=2")) == 1
    out = capsys.readouterr().out
    assert "FAILED with status 3" in out
    assert "no result: reward=em seed=2" in out
    again = Trainer()
    assert run_grid(grid, again) == 0
    assert again.made == [("reward=em", "seed=2"), ("reward=f1", "seed=2")]


def test_an_interrupted_grid_stops_and_goes_on(grid: list[str]) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_grid(grid, Trainer(interrupted="seed=3"))
    again = Trainer()
    run_grid(grid, again)
    assert len(again.made) == 4


def test_the_grid_says_what_it_is_made_of(grid: list[str], tmp_path: Path) -> None:
    run_grid(grid, Trainer())
    record = json.loads((tmp_path / "grid" / "grid.json").read_text())
    assert record["command"] == grid
    assert record["runs"]["reward=f1,seed=3"] == ["reward=f1", "seed=3"]


def test_as_many_run_at_a_time_as_the_cluster_holds(grid: list[str]) -> None:
    together = threading.Barrier(3, timeout=10)  # breaks unless three runs are under way at once
    trainer = Trainer()

    def train(member: Member) -> int:
        together.wait()
        return trainer(member)

    assert run_grid(grid, train, capacity=lambda config: 3) == 0
    assert len(trainer.made) == 6


def test_one_run_at_a_time_where_there_is_no_cluster_of_gpus() -> None:
    assert _capacity(load_config([])) == 1
    assert _capacity(load_config(["recipe=autorefine_qwen2.5_3b"])) == 1


def test_the_band_of_a_curve_is_students_interval_where_all_runs_have_a_value() -> None:
    middle, low, high = mean_curve([[0.0, 0.2, 0.9], [1.0, 0.4]])
    assert middle == pytest.approx([0.5, 0.3])
    # t with 1 degree of freedom: 12.706; standard error of 0 and 1: 0.5.
    assert high[0] - middle[0] == pytest.approx(12.7062 * 0.5, rel=1e-4)
    assert low[0] == pytest.approx(2 * middle[0] - high[0])
    assert mean_curve([[0.1, 0.2]]) == ([0.1, 0.2], [0.1, 0.2], [0.1, 0.2])


def test_fresh_makes_finished_runs_again_in_the_same_folders(grid: list[str]) -> None:
    run_grid(grid, Trainer())
    again = Trainer()
    run_grid([*grid, "fresh=true"], again)
    assert len(again.made) == 6
    assert plan_grid([*GRID, "fresh=true"])[0] == plan_grid(GRID)[0]


def test_results_of_another_configuration_are_not_taken_for_this_one(grid: list[str], tmp_path: Path) -> None:
    run_grid(grid, Trainer())
    (tmp_path / "grid" / "reward=em,seed=2" / "config.yaml").write_text("name: something else\n")
    with pytest.raises(UserError, match="finished, but under another configuration"):
        run_grid(grid, Trainer())


def test_a_dry_run_of_a_grid_starts_nothing(
    grid: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = Trainer()
    assert run_grid([*grid, "dry_run=true"], trainer) == 0
    assert run_grid([*grid, "dry_run=true", "rollout.engine.kv_cache_gib=0.0001"], trainer) == 1
    assert "raise rollout.engine.kv_cache_gib" in capsys.readouterr().out
    assert not trainer.made
    assert not (tmp_path / "grid").exists()
