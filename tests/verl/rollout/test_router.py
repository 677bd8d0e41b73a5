"""Routing: together, balanced, sticky, whoever comes and goes."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from verl.rollout.router import Router

TASKS = st.sampled_from([f"task-{i}" for i in range(6)])
SAMPLES = st.integers(0, 4)
ENGINES = st.integers(0, 3)


def test_samples_of_a_task_share_an_engine_and_tasks_spread() -> None:
    router = Router(["a", "b"])
    routes = {(task, sample): router.route(task, sample) for task in ("x", "y", "z") for sample in range(3)}
    assert [routes[task, 0] for task in ("x", "y", "z")] == ["a", "b", "a"]
    assert all(engine == routes[task, 0] for (task, _), engine in routes.items())
    assert (router.load("a"), router.load("b")) == (6, 3)


def test_a_task_that_is_over_has_no_home_any_more() -> None:
    router = Router(["a", "b"])
    assert router.route("x", 0) == "a"
    router.route("y", 0)
    router.route("z", 0)
    router.done("x", 0)
    router.done("z", 0)
    router.route("w", 0)
    assert router.route("w", 1) == "a"
    assert router.route("x", 0) == "b"


def test_nothing_is_routed_without_engines_and_mistakes_are_told() -> None:
    router: Router[str] = Router()
    with pytest.raises(LookupError, match="no engine"):
        router.route("x", 0)
    router.join("a")
    with pytest.raises(ValueError, match="already"):
        router.join("a")
    with pytest.raises(KeyError, match="not under way"):
        router.done("x", 0)


class RouterMachine(RuleBasedStateMachine):
    """Random traffic against the simplest model: a dictionary of open episodes."""

    def __init__(self) -> None:
        super().__init__()
        self.router: Router[int] = Router()
        self.open: dict[tuple[str, int], int] = {}

    @rule(engine=ENGINES)
    def join(self, engine: int) -> None:
        if engine not in self.router.engines:
            self.router.join(engine)

    @rule(engine=ENGINES)
    def leave(self, engine: int) -> None:
        if engine in self.router.engines:
            lost = self.router.leave(engine)
            assert sorted(lost) == sorted(episode for episode, home in self.open.items() if home == engine)
            self.open = {episode: home for episode, home in self.open.items() if home != engine}

    @precondition(lambda self: self.router.engines)
    @rule(task=TASKS, sample=SAMPLES)
    def route(self, task: str, sample: int) -> None:
        loads = {engine: self.router.load(engine) for engine in self.router.engines}
        homes = {home for (other, _), home in self.open.items() if other == task}
        engine = self.router.route(task, sample)
        if homes:
            assert homes == {engine}
        else:
            assert loads[engine] == min(loads.values())
        assert self.open.setdefault((task, sample), engine) == engine

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def done(self, data: st.DataObject) -> None:
        episode = data.draw(st.sampled_from(sorted(self.open)))
        self.router.done(*episode)
        del self.open[episode]

    @invariant()
    def loads_are_the_open_episodes(self) -> None:
        for engine in self.router.engines:
            assert self.router.load(engine) == sum(home == engine for home in self.open.values())


TestRouter = RouterMachine.TestCase
TestRouter.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
