"""The stepping thread, with an engine made of dictionaries: order, pauses, faults, nothing hangs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verl.errors import EngineDiedError
from verl.rollout.engine_thread import EngineThread


class Countdown:
    """A request is a number of steps; its result is the list of all keys admitted before it ended."""

    def __init__(self) -> None:
        self.left: dict[str, int] = {}
        self.admitted: list[int] = []
        self.steps = 0
        self.fault: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.closed = 0

    def add(self, key: str, request: int) -> None:
        if request < 1:
            raise ValueError("a request takes at least a step")
        self.left[key] = request
        self.admitted.append(request)

    def abort(self, keys: Sequence[str]) -> None:
        for key in keys:
            self.left.pop(key, None)

    def has_work(self) -> bool:
        return bool(self.left)

    def step(self) -> list[tuple[str, int]]:
        self.gate.wait()
        if self.fault is not None:
            raise self.fault
        self.steps += 1
        self.left = {key: left - 1 for key, left in self.left.items()}
        ended = [key for key, left in self.left.items() if left == 0]
        for key in ended:
            del self.left[key]
        return [(key, self.steps) for key in ended]

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def engine() -> Countdown:
    return Countdown()


@pytest.fixture
async def thread(engine: Countdown) -> AsyncIterator[EngineThread[int, int]]:
    thread = EngineThread(lambda: engine)
    yield thread
    engine.gate.set()
    thread.close()


async def test_a_list_is_admitted_between_two_steps_in_order(engine: Countdown, thread: EngineThread[int, int]) -> None:
    results = await asyncio.gather(*thread.submit([3, 1, 2]))
    assert engine.admitted == [3, 1, 2]
    assert results == [3, 1, 2]
    assert not thread._open


async def test_a_refused_request_fails_alone(thread: EngineThread[int, int]) -> None:
    refused, served = thread.submit([0, 2])
    with pytest.raises(ValueError, match="at least a step"):
        await refused
    assert await served == 2


async def test_a_paused_engine_takes_requests_but_does_not_step(
    engine: Countdown, thread: EngineThread[int, int]
) -> None:
    await thread.pause()
    [future] = thread.submit([1])
    assert await thread.call(lambda: (engine.steps, list(engine.admitted))) == (0, [1])
    await thread.resume()
    assert await future == 1


async def test_a_call_runs_on_the_engines_thread_between_steps(
    engine: Countdown, thread: EngineThread[int, int]
) -> None:
    [future] = thread.submit([50])
    name = await thread.call(lambda: threading.current_thread().name)
    assert name == "engine"
    assert await future == 50


async def test_a_failing_step_fails_every_waiting_and_every_later_call(
    engine: Countdown, thread: EngineThread[int, int]
) -> None:
    engine.gate.clear()
    futures = thread.submit([5, 5])
    call = thread.call(lambda: None)
    engine.fault = MemoryError("no blocks left")
    engine.gate.set()
    outcomes = await asyncio.gather(*futures, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [EngineDiedError, EngineDiedError]
    assert all("MemoryError: no blocks left" in str(outcome) for outcome in outcomes)
    assert isinstance(outcomes[0], Exception)
    assert outcomes[0].__cause__ is engine.fault
    await asyncio.wait([call])
    with pytest.raises(EngineDiedError, match="no blocks left"):
        await thread.submit([1])[0]
    with pytest.raises(EngineDiedError, match="no blocks left"):
        await thread.pause()
    thread.close()  # The callers learn of the death before the engine is freed; this waits for both.
    assert engine.closed == 1


async def test_a_failing_call_is_the_callers_own_unless_fatal(thread: EngineThread[int, int]) -> None:
    def fail() -> None:
        raise KeyError("weight")

    with pytest.raises(KeyError):
        await thread.call(fail)
    assert await thread.submit([1])[0] == 1
    for call in (lambda: thread.call(fail, fatal=True), lambda: thread.submit([1])[0], thread.pause):
        with pytest.raises(EngineDiedError, match="KeyError"):
            await call()
    with pytest.raises(EngineDiedError, match="KeyError"):
        thread.check()


async def test_cancelling_a_caller_aborts_its_request_alone(engine: Countdown, thread: EngineThread[int, int]) -> None:
    await thread.pause()
    cancelled, kept = thread.submit([1_000_000_000, 2])
    await thread.call(lambda: None)
    cancelled.cancel()
    await asyncio.sleep(0)  # the cancelled future tells the thread
    assert await thread.call(lambda: list(engine.left.values())) == [2]
    await thread.resume()
    assert await kept == 2
    assert not engine.left


async def test_closing_fails_waiting_calls_and_may_be_repeated(
    engine: Countdown, thread: EngineThread[int, int]
) -> None:
    await thread.pause()
    [future] = thread.submit([5])
    thread.close()
    thread.close()
    with pytest.raises(EngineDiedError, match="closed"):
        await future
    with pytest.raises(EngineDiedError, match="closed"):
        await thread.call(lambda: None)
    assert engine.closed == 1


def test_an_engine_that_cannot_be_built_raises_where_it_was_asked_for() -> None:
    def build() -> Countdown:
        raise OSError("no such model")

    with pytest.raises(OSError, match="no such model"):
        EngineThread(build)


async def test_several_event_loops_share_an_engine(thread: EngineThread[int, int]) -> None:
    async def ask(steps: int) -> int:
        return await thread.submit([steps])[0]

    def in_a_loop_of_its_own(steps: int) -> int:
        return asyncio.run(ask(steps))

    results = await asyncio.gather(*(asyncio.to_thread(in_a_loop_of_its_own, steps) for steps in (1, 2, 3)))
    assert len(results) == 3


async def test_a_caller_whose_loop_is_gone_does_not_disturb_others(
    engine: Countdown, thread: EngineThread[int, int]
) -> None:
    def leave() -> None:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(post())
        loop.close()

    async def post() -> None:
        thread.submit([1])

    engine.gate.clear()
    await asyncio.to_thread(leave)
    engine.gate.set()
    assert await thread.submit([3])[0] >= 3


EVENTS = ["submit", "cancel", "pause", "resume", "call", "fatal", "fault", "close"]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(["submit", "cancel", "pause", "resume", "call", "fatal", "fault", "close"]), max_size=25)
)
def test_every_future_ends_whatever_happens(events: list[str]) -> None:
    async def play() -> None:
        engine = Countdown()
        thread: EngineThread[int, int] = EngineThread(lambda: engine)
        futures: list[asyncio.Future[Any]] = []
        for number, event in enumerate(events):
            if event == "submit":
                futures += thread.submit([1 + number % 4, 0, 3])
            elif event == "cancel" and futures:
                futures[number % len(futures)].cancel()
            elif event == "fault":
                engine.fault = RuntimeError("fault")
            elif event == "close":
                thread.close()
            elif event in ("pause", "resume", "call"):
                futures.append({"pause": thread.pause, "resume": thread.resume}.get(event, call_of(thread))())
            elif event == "fatal":
                futures.append(thread.call(lambda: 1 // 0, fatal=True))
        futures.append(thread.resume())
        await asyncio.wait_for(asyncio.gather(*futures, return_exceptions=True), 30)
        thread.close()
        assert not thread._open
        assert engine.closed == 1

    asyncio.run(play())


def call_of(thread: EngineThread[int, int]) -> Callable[[], asyncio.Future[object]]:
    return lambda: thread.call(object)
