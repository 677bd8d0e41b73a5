"""What open episodes wait for: a slow search stands still, a queue before an engine that steps does not."""

from __future__ import annotations

from contextlib import ExitStack

from verl.rollout.progress import Progress


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_episodes_are_counted_by_what_they_wait_for_the_longest_wait_first() -> None:
    clock = Clock()
    progress = Progress(clock)
    with ExitStack() as stack:
        episodes = [stack.enter_context(progress.episode(group)) for group in (7, 7, 8, 9)]
        clock.now = 10.0
        episodes[0].enter("engine")
        episodes[3].enter("reward")
        clock.now = 15.0
        status = progress.status(engine_busy_s=1.0)
        assert {phase: (w.episodes, w.longest_s, w.groups) for phase, w in status.waiting.items()} == {
            "engine": (1, 5.0, (7,)),
            "environment": (2, 15.0, (7, 8)),
            "reward": (1, 5.0, (9,)),
        }
        assert status.still_s == 15.0
        assert "2 episodes wait for the retriever, the longest for 15 s, groups 7, 8" in status.text()
    assert progress.status(1.0).still_s == 0.0


def test_a_long_queue_before_an_engine_that_steps_does_not_stand_still() -> None:
    clock = Clock()
    progress = Progress(clock)
    with progress.episode(1) as episode:
        episode.enter("engine")
        for busy in (1.0, 2.0, 3.0):
            clock.now += 100.0
            assert progress.status(busy).still_s == 0.0
        clock.now += 100.0
        assert progress.status(3.0).still_s == 100.0
        assert "wait for the engine (last step 100 s ago)" in progress.status(3.0).text()


def test_many_groups_are_told_by_a_few_and_a_count() -> None:
    progress = Progress(Clock())
    with ExitStack() as stack:
        for group in range(9):
            stack.enter_context(progress.episode(group))
        assert progress.status(0.0).text().endswith("groups 0, 1, 2, 3, 4 and 4 more")
