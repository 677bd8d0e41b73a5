"""The discrete-event model gives the closed form wherever there is one."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench.scale.fleet import of_card
from bench.scale.load import Load, Turn, draw, played
from bench.scale.rates import as_row, replaced
from bench.scale.simulate import Fleet, Outcome, Rates
from bench.scale.simulate import simulate as simulate_groups
from bench.scale.turns import Played as PlayedTurns
from bench.scale.turns import Scripted
from search_agent.planning.rates import TABLE, read_rates
from search_agent.planning.rates import Rates as CardRates
from verl.rollout.interfaces import Generation, Sampling
from verl.rollout.interfaces import Turn as Turns
from verl.trajectory import ToolCall, Trajectory

RATES = Rates(step_s=0.01, request_s=0.001, prefill_s=1e-5)
ONE = Load(
    groups_per_step=1,
    group_size=1,
    turns=3,
    prompt_tokens=100,
    observation_tokens=50,
    turn_tokens=1,
    search_median_s=0.0,
    tail_share=0.0,
)
"""One episode of three turns of one token each, searches that take no time."""
READING_S = (100 + 50 + 50) * 1e-5


def simulate(rates: Rates, load: Load, fleet: Fleet, steps: int) -> Outcome:
    return simulate_groups(rates, draw(load, steps), fleet, steps)


def test_one_episode_without_latency_takes_its_steps_and_its_reading() -> None:
    outcome = simulate(RATES, ONE, Fleet(engines=1), steps=1)
    assert outcome.seconds == pytest.approx(3 * 0.011 + READING_S)
    assert outcome.engine_busy == pytest.approx(1.0)


def test_each_turn_has_a_cost_of_its_own() -> None:
    outcome = simulate(dataclasses.replace(RATES, turn_s=0.05), ONE, Fleet(engines=1), steps=1)
    assert outcome.seconds == pytest.approx(3 * (0.011 + 0.05) + READING_S)


def test_a_search_that_always_takes_the_tail_leaves_the_engine_idle_meanwhile() -> None:
    load = dataclasses.replace(ONE, tail_share=1.0, tail_s=5.0)
    outcome = simulate(RATES, load, Fleet(engines=1), steps=1)
    working = 3 * 0.011 + READING_S
    assert outcome.seconds == pytest.approx(working + 2 * 5.0)
    assert outcome.engine_busy == pytest.approx(working / outcome.seconds)


def test_on_policy_engine_and_learner_take_turns() -> None:
    rates = dataclasses.replace(RATES, learn_s=0.2, sync_s=0.05)
    outcome = simulate(rates, ONE, Fleet(engines=1), steps=4)
    rollout = 3 * 0.011 + READING_S
    assert outcome.seconds == pytest.approx(4 * (rollout + 0.2 + 0.05))
    assert outcome.learner_busy == pytest.approx(0.2 / (rollout + 0.25))


def test_with_staleness_the_slower_side_sets_the_pace() -> None:
    rates = dataclasses.replace(RATES, learn_s=1.0)
    outcome = simulate(rates, ONE, Fleet(engines=1, max_staleness=2), steps=50)
    assert outcome.seconds == pytest.approx(50 * 1.0, rel=0.01)
    assert outcome.learner_busy > 0.99


def test_two_engines_share_the_groups_and_two_learners_halve_the_learning() -> None:
    load = dataclasses.replace(ONE, groups_per_step=2)
    rates = dataclasses.replace(RATES, learn_s=0.2)
    together = simulate(rates, load, Fleet(engines=2, learners=2), steps=1)
    assert together.seconds == pytest.approx(3 * 0.011 + READING_S + 0.2)


def test_requests_beyond_an_engines_batch_wait() -> None:
    load = dataclasses.replace(ONE, groups_per_step=2, turns=1)
    outcome = simulate(RATES, load, Fleet(engines=1, max_running=1), steps=1)
    assert outcome.seconds == pytest.approx(2 * (0.011 + 100 * 1e-5))


def test_samples_of_a_task_read_their_prompt_once() -> None:
    load = dataclasses.replace(ONE, group_size=4, turns=1)
    outcome = simulate(RATES, load, Fleet(engines=1), steps=1)
    assert outcome.seconds == pytest.approx(0.01 + 4 * 0.001 + 100 * 1e-5)


def test_every_episode_of_every_step_is_counted_and_more_engines_are_never_slower() -> None:
    load = Load(groups_per_step=4)
    times = [simulate(RATES, load, Fleet(engines=n, max_staleness=1), steps=4).seconds for n in (1, 2, 4)]
    assert times == sorted(times, reverse=True)
    assert simulate(RATES, load, Fleet(engines=2), steps=4).episodes == 4 * 4 * 8


def test_a_played_episode_is_simulated_turn_by_turn() -> None:
    episode = (Turn(100, 3, 2.0), Turn(40, 5, 9.0))
    outcome = simulate_groups(RATES, [(episode,)], Fleet(engines=1))
    working = (3 + 5) * 0.011 + 140 * 1e-5
    assert outcome.seconds == pytest.approx(working + 2.0), "nobody waits for a search behind the last turn"
    assert outcome.engine_busy == pytest.approx(working / outcome.seconds)


def test_drawn_turns_are_cut_and_samples_share_their_prompt() -> None:
    (group,) = draw(Load(1, turn_tokens=64, max_turn_tokens=70), 1)
    assert max(turn.new_tokens for episode in group for turn in episode) == 70
    assert [episode[0].read_tokens for episode in group] == [200] + [0] * 7
    assert {turn.read_tokens for episode in group for turn in episode[1:]} == {500}


def test_groups_that_do_not_make_equal_batches_are_refused() -> None:
    with pytest.raises(ValueError, match="3 groups do not make 2 equal batches"):
        simulate_groups(RATES, draw(ONE, 3), Fleet(engines=1), 2)


def test_what_was_played_is_read_from_trajectories() -> None:
    groups = [[_trajectory(task, sample) for sample in range(2)] for task in ("a", "b")]
    read = played(groups[0] + groups[1], lambda call: float(call.request))
    first = (Turn(3, 2, 1.5), Turn(4, 1, 0.0))
    later = (Turn(0, 2, 1.5), Turn(4, 1, 0.0))  # the prompt is in the cache
    assert read == [(first, later), (first, later)]


def _trajectory(task: str, sample: int) -> Trajectory:
    trajectory = Trajectory(task, sample)
    trajectory.append_prompt([1, 2, 3], "p")
    trajectory.append_generated([4, 5], "g", [0.0, 0.0], [0, 0], "stop")
    trajectory.append_observation([6, 7, 8, 9], "o", [ToolCall("search", "0.2"), ToolCall("search", "1.5")])
    trajectory.append_generated([4], "g", [0.0], [0], "length")
    return trajectory


def test_a_measured_row_takes_the_place_of_its_card_alone_and_is_read_back(tmp_path: Path) -> None:
    found = dict.fromkeys(("step_s", "request_s", "read_s", "turn_s", "learn_tflops", "shm", "push_s"), 0.0012345)
    row = as_row(
        {**found, "read_s": 9e-6, "parameters": 5e5}, {"commit": "797036155557", "cores": 2, "processor": "AMD: one's"}
    )
    table = tmp_path / "rates.yaml"
    table.write_text(replaced(replaced(TABLE.read_text(), row), row))
    before, after = read_rates(), read_rates(table)
    assert [rates for rates in after if rates.card != "CPU"] == [rates for rates in before if rates.card != "CPU"]
    [mine] = [rates for rates in after if rates.card == "CPU"]
    assert (mine.read_s, mine.turn_s, mine.push_s) == (9e-6, 0.00123, 0.00123)
    assert (mine.parameters, mine.step_s, mine.sync_gib_per_s) == (5e5, 0.00123, {"shm": 0.00123})
    assert table.read_text().startswith("# Measured rates")


def test_a_fleet_of_cards_takes_its_seconds_from_the_table_that_predicts_runs() -> None:
    [row] = [rates for rates in read_rates() if rates.card == "H200"]
    at = of_card("H200", "Qwen/Qwen2.5-1.5B", Load(1))
    assert at.step_s == pytest.approx(row.step_s, rel=0.01)  # the same model
    assert at.sync_s == pytest.approx(row.push_s + 2.88 / row.sync_gib_per_s["ipc"], rel=0.01)
    assert at.turn_s == row.turn_s
    assert at.learn_s > 0
    longer = of_card("H200", "Qwen/Qwen2.5-1.5B", Load(1, turns=10))
    assert longer.learn_s > 2 * at.learn_s  # attention grows faster than tokens


def test_a_turn_takes_what_its_tokens_leave() -> None:
    rates = CardRates("X1", "", "", "", parameters=1.0, step_s=0.5, request_s=0.01, read_s=0.001)
    played = PlayedTurns(seconds=20.0, turns=40, written=200, longest=25, read=400)
    assert played.turn_s(rates) == pytest.approx((20.0 - 25 * 0.5 - 200 * 0.01 - 400 * 0.001) / 40)
    assert dataclasses.replace(played, seconds=1.0).turn_s(rates) == 0.0


class _Engine:
    def __init__(self) -> None:
        self.asked: list[int] = []

    async def generate(self, token_ids: Sequence[int], turn: Turns, sampling: Sampling, seed: int) -> Generation:
        self.asked.append(turn.max_tokens)
        return Generation([1], "x", [-0.5], [3], "stop")


def test_an_episode_of_a_script_says_the_script_and_makes_the_engine_write_as_much() -> None:
    engine, tokenizer = _Engine(), lambda text, **_: {"input_ids": list(range(len(text)))}
    scripted = Scripted(engine, iter(["ab</s>", "end"]), tokenizer)
    first, last = (asyncio.run(scripted.generate([7], Turns(64, ("</s>",)), Sampling(), 0)) for _ in range(2))
    assert (first.text, first.stop, first.finish_reason, len(first.token_ids)) == ("ab</s>", "</s>", "stop", 6)
    assert (last.text, last.stop, last.finish_reason, last.versions) == ("end", None, "end_of_turn", [3, 3, 3])
    assert engine.asked == [6, 3]
