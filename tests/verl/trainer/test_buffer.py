"""The group buffer keeps its bound, loses nothing and never deadlocks, at any speed of either side."""

from __future__ import annotations

import heapq
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verl.trainer.buffer import GroupBuffer


def simulate(groups_per_step: int, max_staleness: int, steps: int, seed: int, slowness: float) -> list[tuple[int, int]]:
    """Run producer and trainer on a simulated clock; return (group number, staleness when trained on)."""
    rng = random.Random(seed)
    buffer: GroupBuffer[int] = GroupBuffer(groups_per_step, max_staleness)
    now, training_until = 0.0, 0.0
    running: list[tuple[float, int, int]] = []
    trained: list[tuple[int, int]] = []
    in_training = False
    while buffer.version < steps:
        for number in buffer.startable():
            heapq.heappush(running, (now + rng.expovariate(1.0) ** 3, number, buffer.version))
        if not in_training and buffer.ready():
            trained += [(number, buffer.version - started) for number, started in buffer.take()]
            in_training, training_until = True, now + rng.random() * slowness
        next_finish = running[0][0] if running else float("inf")
        if in_training and training_until <= next_finish:
            now, in_training = training_until, False
            buffer.advance()
        else:
            assert running, "deadlock: nothing runs and nothing can be trained on"
            now, number, started = heapq.heappop(running)
            buffer.finish(number, started)
    return trained


@settings(deadline=None)
@given(
    groups_per_step=st.integers(1, 6),
    max_staleness=st.integers(0, 4),
    seed=st.integers(0, 10_000),
    slowness=st.sampled_from([0.01, 1.0, 20.0]),
)
def test_no_group_is_too_old_lost_or_trained_on_twice(
    groups_per_step: int, max_staleness: int, seed: int, slowness: float
) -> None:
    steps = 12
    trained = simulate(groups_per_step, max_staleness, steps, seed, slowness)
    numbers = [number for number, _ in trained]
    assert all(0 <= staleness <= max_staleness for _, staleness in trained)
    assert len(numbers) == steps * groups_per_step
    assert len(set(numbers)) == len(numbers)
    # Nothing is lost: whatever started long enough ago has been trained on.
    certain = (steps - max_staleness) * groups_per_step
    assert set(range(certain)) <= set(numbers)


def test_staleness_zero_takes_exactly_the_groups_of_its_own_version() -> None:
    buffer: GroupBuffer[str] = GroupBuffer(2, 0)
    assert buffer.startable() == [0, 1]
    assert buffer.startable() == []
    buffer.finish(1, "b")
    assert not buffer.ready()
    with pytest.raises(RuntimeError, match=r"waits for groups \[0\]"):
        buffer.take()
    buffer.finish(0, "a")
    assert buffer.take() == [(0, "a"), (1, "b")]
    assert buffer.startable() == [], "no group may start before the weights moved"
    buffer.advance()
    assert buffer.startable() == [2, 3]


def test_a_slow_group_holds_no_step_until_its_last_chance() -> None:
    buffer: GroupBuffer[str] = GroupBuffer(2, 1)
    assert buffer.startable() == [0, 1, 2, 3]
    for number in (1, 2, 3):
        buffer.finish(number, "done")
    assert [n for n, _ in buffer.take()] == [1, 2]
    buffer.advance()
    assert buffer.startable() == [4, 5]
    for number in (4, 5):
        buffer.finish(number, "done")
    assert not buffer.ready(), "group 0 started at version 0 and must be in the step of version 1"
    with pytest.raises(RuntimeError, match=r"waits for groups \[0\]"):
        buffer.take()
    buffer.finish(0, "late")
    assert [n for n, _ in buffer.take()] == [0, 3]


def test_a_restart_starts_the_outstanding_groups_again_and_nothing_else() -> None:
    buffer: GroupBuffer[str] = GroupBuffer(2, 1)
    buffer.startable()
    for number in (0, 3):
        buffer.finish(number, "done")
    buffer.take()
    buffer.advance()
    resumed: GroupBuffer[str] = GroupBuffer(2, 1, version=1)
    assert resumed.restore(buffer.outstanding(), buffer.next_number) == [1, 2]
    assert resumed.startable() == [4, 5]


def test_finishing_a_group_twice_is_an_error() -> None:
    buffer: GroupBuffer[str] = GroupBuffer(1)
    buffer.startable()
    buffer.finish(0, "a")
    with pytest.raises(ValueError, match="twice"):
        buffer.finish(0, "a")
