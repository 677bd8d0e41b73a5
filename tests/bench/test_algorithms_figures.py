"""The algorithms bench: every preset is in it, and the time until it is good counts steps, not evaluations."""

from __future__ import annotations

from bench.main_job.algorithms import PRESETS, first_good
from search_agent.grid.members import plan_grid
from verl.config.compose import CONFIG_DIR


def test_every_preset_of_the_quick_start_is_measured() -> None:
    assert set(PRESETS) == {path.stem for path in (CONFIG_DIR / "recipe").glob("quickstart*.yaml")}
    _, members = plan_grid([f"recipe={','.join(PRESETS)}"])
    assert [member.config.name for member in members] == list(PRESETS)


def test_the_time_until_good_is_that_of_the_steps_before_the_evaluation() -> None:
    rows = [
        {"dev/greedy/em": 0.4},
        {"seconds/step": 2.0},
        {"seconds/step": 3.0},
        {"dev/greedy/em": 0.95},
        {"seconds/step": 4.0},
        {"dev/greedy/em": 1.0},
    ]
    assert first_good(rows) == 5.0
    assert first_good(rows[:3]) is None
