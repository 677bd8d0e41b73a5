"""Busy and idle shares are of the time since the last reading, whoever was started again meanwhile."""

from __future__ import annotations

import pytest

from verl.cluster.shares import BusyShares


def shares(*readings: tuple[float, dict[str, float]]) -> list[dict[str, float]]:
    times = iter([0.0, *(time for time, _ in readings)])
    meter = BusyShares(lambda: next(times))
    return [meter.read(busy) for _, busy in readings]


def test_shares_are_of_the_time_between_readings() -> None:
    first, second = shares((10, {"learner": 4.0}), (20, {"learner": 5.0}))
    assert first == {"busy/learner": pytest.approx(0.4), "idle/learner": pytest.approx(0.6)}
    assert second == {"busy/learner": pytest.approx(0.1), "idle/learner": pytest.approx(0.9)}


def test_a_replica_that_was_started_again_counts_from_its_start() -> None:
    _, second = shares((10, {"rollout_0": 9.0}), (20, {"rollout_0": 2.0}))
    assert second["busy/rollout_0"] == pytest.approx(0.2)


def test_a_new_replica_began_at_nothing_and_a_silent_one_is_left_out() -> None:
    _, second = shares((10, {"rollout_0": 9.0}), (20, {"rollout_1": 3.0}))
    assert second == {"busy/rollout_1": pytest.approx(0.3), "idle/rollout_1": pytest.approx(0.7)}


def test_a_share_is_never_above_one() -> None:
    assert shares((10, {"learner": 11.0}))[0]["busy/learner"] == 1.0
