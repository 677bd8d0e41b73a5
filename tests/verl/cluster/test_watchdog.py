"""A wait is told once a bound, with who and what; past the last bound the run ends with it."""

from __future__ import annotations

import asyncio
import logging

import pytest

from verl.cluster.watchdog import Stall, Watchdog
from verl.errors import InfrastructureError


def told(watchdog: Watchdog, *seconds: float) -> list[int]:
    """How many warnings each look at one wait of so many seconds gives."""
    return [len(watchdog.judge([Stall("rollout_0", s, "3 episodes wait for the retriever")])) for s in seconds]


def test_one_warning_a_bound_and_none_before_it() -> None:
    assert told(Watchdog([], warn_s=10, fail_s=100), 5, 9.9, 10, 15, 20, 29, 31) == [0, 0, 1, 0, 1, 0, 1]


def test_a_wait_that_moved_is_told_again_when_it_stands_still_again() -> None:
    assert told(Watchdog([], warn_s=10, fail_s=100), 12, 3, 12) == [1, 0, 1]


def test_each_replica_has_its_own_warnings() -> None:
    watchdog = Watchdog([], warn_s=10, fail_s=100)
    lines = watchdog.judge([Stall("learner", 11, "a"), Stall("rollout_0", 12, "b"), Stall("rollout_1", 1, "c")])
    assert lines == ["learner has not moved for 11 s: a", "rollout_0 has not moved for 12 s: b"]


def test_the_last_bound_is_one_error_that_names_all_that_stands_still() -> None:
    watchdog = Watchdog([], warn_s=10, fail_s=100)
    with pytest.raises(InfrastructureError, match=r"101 s .*rollout_0: searching; learner: update; the same command"):
        watchdog.judge([Stall("rollout_0", 101, "searching"), Stall("learner", 50, "update"), Stall("r1", 3, "fine")])


async def test_work_goes_on_under_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    looked = asyncio.Event()

    async def look() -> list[Stall]:
        looked.set()
        return [Stall("rollout_0", 5, "2 episodes wait for the retriever")]

    async def work() -> int:
        await looked.wait()
        await asyncio.sleep(0.05)
        return 7

    with caplog.at_level(logging.WARNING):
        assert await Watchdog([look], warn_s=0.01, fail_s=60).watch(work()) == 7
    assert "rollout_0 has not moved for 5 s: 2 episodes wait for the retriever" in caplog.text


async def test_work_that_hangs_ends_with_the_error_and_is_cancelled() -> None:
    ended = asyncio.Event()

    async def look() -> list[Stall]:
        return [Stall("learner", 70, "the run waits for update on 2 ranks")]

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    with pytest.raises(InfrastructureError, match="update on 2 ranks"):
        await asyncio.wait_for(Watchdog([look], warn_s=0.01, fail_s=60).watch(work()), 10)
    assert ended.is_set()


async def test_an_error_of_the_work_passes() -> None:
    async def work() -> None:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        await Watchdog([], warn_s=10, fail_s=60).watch(work())
