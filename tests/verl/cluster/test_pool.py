"""The pool loses no group and plays none twice, whoever dies; who joins has the newest weights first."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.exceptions import ActorDiedError, RayTaskError

from verl.cluster.pool import EPISODES_PER_CALL, RolloutPool
from verl.data.tasks import Task
from verl.errors import EngineDiedError, InfrastructureError, UserError
from verl.rollout.engine_config import EngineConfig
from verl.rollout.groups import Group, GroupRequest
from verl.rollout.interfaces import Sampling
from verl.rollout.progress import Waiting, WorkerStatus
from verl.sync import Sent, WeightUpdate
from verl.sync.canary import Canary
from verl.sync.manager import Newest, WeightManager


class FakeWorker:
    """A worker's process: plays a group when it is let, dies when it is told, and remembers what it was asked."""

    def __init__(self, number: int, *, broken: bool = False) -> None:
        self.number = number
        self.calls: list[list[int]] = []
        self.played: list[int] = []
        self.version: int | None = None
        self.received: int | None = None
        """The checksum of what came from the learner's GPU."""
        self.versions: list[int | None] = []
        """Of its weights, when each call came."""
        self.asleep = self.silent = self.noisy = False
        self.empty = False
        """Whether it gave its weights up."""
        self.fail_at: dict[str, Exception] = {}
        """What the next call of a name raises."""
        self.go = asyncio.Event()
        self.go.set()
        self._dead = asyncio.Event()
        self._broken = broken

    def die(self) -> None:
        self._dead.set()

    def __getattr__(self, method: str) -> Any:
        answer = super().__getattribute__(f"do_{method}")

        async def call(*args: Any) -> Any:
            if (error := self.fail_at.pop(method, None)) is not None:
                raise error
            return await answer(*args)

        return type("Method", (), {"remote": lambda _, *args: asyncio.ensure_future(self._alive(call, *args))})()

    async def _alive(self, call: Any, *args: Any) -> Any:
        work, death = asyncio.ensure_future(call(*args)), asyncio.ensure_future(self._dead.wait())
        await asyncio.wait({work, death}, return_when=asyncio.FIRST_COMPLETED)
        if self._dead.is_set():
            work.cancel()
            raise ActorDiedError()
        death.cancel()
        return work.result()

    async def do_open(self) -> None:
        if self._broken:
            raise InfrastructureError("it cannot start")

    async def do_run_groups(self, requests: Sequence[GroupRequest]) -> list[Group]:
        assert (self.asleep, self.empty) == (False, False)
        self.versions.append(self.version)
        self.calls.append([request.number for request in requests])
        await self.go.wait()
        await asyncio.sleep(0)
        self.played += self.calls[-1]
        if any(request.task.question == "too long" for request in requests):
            raise UserError("a prompt is too long")
        return [Group(request.number, request.task) for request in requests]

    async def do_update_weights(self, update: Any, version: int) -> None:
        await asyncio.sleep(0)
        assert not self.asleep
        self.version, self.empty = version, False

    async def do_pause(self) -> None:
        await asyncio.sleep(0)
        self.asleep = True

    async def do_commit_received(self, version: int, sent: Sent) -> None:
        assert (self.asleep, self.received, self.noisy) == (True, sent.checksum, False)
        self.version, self.asleep, self.empty = version, False, False

    async def do_probe(self, prompts: Sequence[Sequence[int]]) -> Any:
        return [(self.version, 0.0, 0.0) for _ in prompts]

    async def do_sleep(self) -> None:
        self.asleep = self.empty = True

    async def do_wake(self) -> None:
        self.asleep = False

    async def do_status(self) -> WorkerStatus:
        if self.silent:
            await asyncio.Event().wait()
        return WorkerStatus({"environment": Waiting(2, 40.0, (5,))} if not self.go.is_set() else {})

    async def do_stats(self) -> dict[str, float]:
        return {"busy_s": 1.0}


class FakeLearner:
    """Writes files and sends; ``changes`` grows when it trains on."""

    def __init__(self) -> None:
        self.changes = 0
        self.sent: list[list[str]] = []
        self.files: list[int] = []
        self.breaks_off: Exception | None = None

    async def publish(self, version: int, dtype: str, folder: str) -> WeightUpdate:
        await asyncio.sleep(0)
        self.files.append(version)
        return WeightUpdate(version, f"/nowhere/{version}", (), 0, 0)

    async def send(self, transport: str, dtype: str, engines: Mapping[str, Any], ranks_per_engine: int) -> Sent:
        if self.breaks_off is not None:
            raise self.breaks_off
        self.sent.append(list(engines))
        for worker in engines.values():
            assert worker.asleep
            worker.received = len(self.sent)
        await asyncio.sleep(0)
        return Sent(len(self.sent))

    async def probe(self, prompts: Any) -> Any:
        return [(0, 0.0, 0.0)]


class NotedCanary(Canary):
    """Notes the answers, and refuses those after the first ``passes``."""

    def __init__(self, passes: int = 1000) -> None:
        super().__init__([[1]], dtypes=["float32"], vocabulary=100)
        self.answers: list[Any] = []
        self.passes = passes

    def check(self, who: str, engine: Any) -> None:
        self.answers.append(engine)
        if len(self.answers) > self.passes:
            raise InfrastructureError("canary: other weights")


class Processes:
    """Starts fake workers; ``made[n]`` are the processes of worker n, in order."""

    def __init__(
        self,
        tmp_path: Path,
        workers: int,
        *,
        broken_after_first: bool = False,
        transport: Any = "shm",
        canary_passes: int = 1000,
        **options: Any,
    ) -> None:
        self.made: dict[int, list[FakeWorker]] = {number: [] for number in range(workers)}
        self._broken_after_first = broken_after_first
        logs = [tmp_path / f"rollout_{number}.log" for number in range(workers)]
        newest = Newest()
        self.pool = RolloutPool(self._start, logs, newest, open_timeout_s=5, **options)
        self.learner, self.canary = FakeLearner(), NotedCanary(canary_passes)
        engine = EngineConfig(weight_transfer=transport)
        self.push = WeightManager(
            newest,
            self.learner,
            self.pool,
            engine=engine,
            folder="/nowhere",
            node="",
            canary=self.canary,
            read_saved=lambda folder, dtype: [],
        ).push

    def _start(self, number: int) -> FakeWorker:
        worker = FakeWorker(number, broken=self._broken_after_first and bool(self.made[number]))
        self.made[number].append(worker)
        return worker

    def now(self, number: int) -> FakeWorker:
        return self.made[number][-1]


def requests(numbers: Sequence[int], samples: int = 2, question: str = "q") -> list[GroupRequest]:
    return [
        GroupRequest(number, Task(f"t{number}", question, ("a",)), samples, "train", "train", 0, Sampling())
        for number in numbers
    ]


async def settle() -> None:
    for _ in range(30):
        await asyncio.sleep(0)


async def test_groups_spread_over_workers_and_come_back_in_order(tmp_path: Path) -> None:
    processes = Processes(tmp_path, 2)
    groups = await processes.pool.run(requests([4, 1, 3, 2]))
    assert [group.number for group in groups] == [4, 1, 3, 2]
    assert (processes.now(0).played, processes.now(1).played) == ([4, 3], [1, 2])


async def test_a_group_goes_to_the_worker_with_the_fewest_open_episodes(tmp_path: Path) -> None:
    processes = Processes(tmp_path, 2)
    await processes.pool.ready()
    processes.now(0).go.clear()
    slow = asyncio.create_task(processes.pool.run(requests([0])))
    await settle()
    for number in (1, 2, 3):
        await processes.pool.run(requests([number]))
    assert processes.now(1).played == [1, 2, 3]
    processes.now(0).go.set()
    await slow


async def test_many_groups_travel_in_calls_of_bounded_size(tmp_path: Path) -> None:
    processes = Processes(tmp_path, 1)
    await processes.pool.run(requests(range(20), samples=EPISODES_PER_CALL // 8))
    assert [len(call) for call in processes.now(0).calls] == [8, 8, 4]


async def test_a_deterministic_share_is_one_call(tmp_path: Path) -> None:
    processes = Processes(tmp_path, 2, fixed_shares=True)
    await processes.pool.run(requests(range(40), samples=8))
    assert [len(worker.calls) for worker in (processes.now(0), processes.now(1))] == [1, 1]


async def test_a_dead_workers_groups_are_played_on_the_others_and_it_comes_back(tmp_path: Path) -> None:
    processes = Processes(tmp_path, 2, max_restarts=1)
    await processes.pool.ready()
    processes.now(0).go.clear()
    run = asyncio.create_task(processes.pool.run(requests(range(4))))
    await settle()
    processes.now(0).die()
    assert [group.number for group in await run] == [0, 1, 2, 3]
    assert sorted(processes.now(1).played) == [0, 1, 2, 3]
    await settle()
    assert len(processes.made[0]) == 2
    await processes.pool.run(requests([7, 8]))
    assert processes.now(0).played != []


async def test_a_worker_that_comes_back_has_the_newest_weights_and_is_checked_before_it_serves(tmp_path: Path) -> None:
    processes = Processes(tmp_path, 1, max_restarts=1)
    await processes.pool.ready()
    await processes.push(3)
    processes.now(0).die()
    assert [group.number for group in await processes.pool.run(requests([5]))] == [5]
    assert processes.now(0).versions == [3]
    assert processes.canary.answers == [[(3, 0.0, 0.0)], [(3, 0.0, 0.0)]]


async def test_a_worker_that_disagrees_with_the_learner_does_not_come_back(tmp_path: Path) -> None:
    processes = Processes(tmp_path, 2, max_restarts=2, canary_passes=2)
    await processes.pool.ready()
    await processes.push(1)
    processes.now(0).die()
    await processes.pool.run(requests(range(4)))
    await settle()
    assert len(processes.canary.answers) == 4
    assert processes.now(0).calls == []


async def test_an_engine_that_disagrees_after_a_push_ends_the_run(tmp_path: Path) -> None:
    processes = Processes(tmp_path, 2, max_restarts=2, canary_passes=1)
    await processes.pool.ready()
    with pytest.raises(InfrastructureError, match="other weights"):
        await processes.push(1)


async def test_a_worker_found_dead_by_a_weight_update_is_left_out_and_started_again(tmp_path: Path) -> None:
    processes = Processes(tmp_path, 2, max_restarts=1)
    await processes.pool.ready()
    processes.now(0).die()
    await processes.push(2)
    assert processes.now(1).version == 2
    await settle()
    assert processes.now(0).version == 2
    assert set(await processes.pool.stats()) == {"rollout_0", "rollout_1"}


async def test_a_deterministic_share_waits_for_its_own_worker_and_is_played_again_whole(tmp_path: Path) -> None:
    processes = Processes(tmp_path, 2, max_restarts=1, fixed_shares=True)
    await processes.pool.ready()
    processes.now(0).go.clear()
    run = asyncio.create_task(processes.pool.run(requests(range(6))))
    await settle()
    processes.now(0).die()
    assert [group.number for group in await run] == list(range(6))
    assert processes.made[0][0].calls == processes.made[0][1].calls == [[0, 2, 4]]
    assert processes.now(1).calls == [[1, 3, 5]]


@pytest.mark.parametrize("fixed_shares", [False, True])
async def test_when_none_is_left_one_error_names_the_cause_and_the_log(tmp_path: Path, fixed_shares: bool) -> None:
    processes = Processes(tmp_path, 1, max_restarts=2, broken_after_first=True, fixed_shares=fixed_shares)
    await processes.pool.ready()
    processes.now(0).die()
    with pytest.raises(InfrastructureError, match=r"cannot start(.|\n)*the same command goes on"):
        await asyncio.wait_for(processes.pool.run(requests([1])), 5)
    assert len(processes.made[0]) == 3


async def test_without_restarts_the_others_go_on_alone(tmp_path: Path) -> None:
    processes = Processes(tmp_path, 2)
    await processes.pool.ready()
    processes.now(1).die()
    assert len(await processes.pool.run(requests(range(5)))) == 5
    await settle()
    assert len(processes.made[1]) == 1
    assert sorted(processes.now(0).played) == list(range(5))


async def test_a_mistake_is_told_and_costs_no_worker(tmp_path: Path) -> None:
    processes = Processes(tmp_path, 1, max_restarts=1)
    with pytest.raises(UserError, match="too long"):
        await processes.pool.run(requests([1], question="too long"))
    assert len(processes.made[0]) == 1


async def test_engines_pause_get_their_weights_and_take_the_version(tmp_path: Path) -> None:
    processes = Processes(tmp_path, 2, transport="nccl")
    await processes.pool.ready()
    learner = processes.learner
    await processes.push(3)
    assert [processes.now(number).version for number in (0, 1)] == [3, 3]
    assert not processes.now(0).asleep
    assert (learner.sent, learner.files) == ([["rollout_0.0", "rollout_1.0"]], [])


async def test_a_worker_found_dead_before_a_transfer_is_left_out_and_gets_a_file_of_it(tmp_path: Path) -> None:
    processes = Processes(tmp_path, 2, transport="nccl", max_restarts=1)
    await processes.pool.ready()
    learner = processes.learner
    processes.now(0).die()
    await processes.push(2)
    learner.changes += 1
    await settle()
    assert processes.now(0).version == 2
    await processes.push(3)
    assert learner.sent == [["rollout_1.0"], ["rollout_0.1", "rollout_1.0"]]
    assert learner.files == [2]
    assert [processes.now(number).version for number in (0, 1)] == [3, 3]


async def test_a_worker_that_joins_while_the_learner_waits_gets_a_file_written_for_it(tmp_path: Path) -> None:
    processes = Processes(tmp_path, 1, transport="nccl", max_restarts=1, fixed_shares=True)
    await processes.pool.ready()
    learner = processes.learner
    await processes.push(1)
    processes.now(0).die()
    await asyncio.wait_for(processes.pool.run(requests([5])), 5)
    assert (processes.now(0).versions, learner.files) == ([1], [1])


async def test_a_worker_that_joins_after_the_learner_went_on_waits_for_the_next_version(tmp_path: Path) -> None:
    processes = Processes(tmp_path, 2, transport="nccl", max_restarts=1)
    await processes.pool.ready()
    learner = processes.learner
    await processes.push(1)
    learner.changes += 1
    processes.now(0).die()
    await processes.pool.run(requests(range(4)))
    await settle()
    assert len(processes.made[0]) == 2
    await processes.pool.run(requests(range(4, 8)))
    assert processes.now(0).calls == []
    await processes.push(2)
    learner.changes += 1
    await settle()
    await processes.pool.run(requests(range(8, 12)))
    assert set(processes.now(0).versions) == {2}
    assert learner.files == [2]


async def test_an_engine_whose_weights_did_not_arrive_whole_is_replaced(tmp_path: Path) -> None:
    processes = Processes(tmp_path, 1, transport="ipc", max_restarts=1)
    await processes.pool.ready()
    processes.now(0).noisy = True
    await processes.push(1)
    assert [group.number for group in await processes.pool.run(requests([3]))] == [3]
    assert processes.now(0).versions == [1]
    assert len(processes.made[0]) == 2


async def test_a_group_that_a_dying_engine_broke_is_replaced_whole(tmp_path: Path) -> None:
    processes = Processes(tmp_path, 2, transport="nccl", max_restarts=1)
    await processes.pool.ready()
    processes.learner.breaks_off = EngineDiedError("rollout_1.0 update_weights: its process died")
    await processes.push(4)
    await processes.pool.run(requests([3, 4]))
    await settle()
    assert [processes.now(number).version for number in (0, 1)] == [4, 4]
    assert [len(made) for made in processes.made.values()] == [2, 2]


FAULTS = {
    "its process is gone": ActorDiedError(),
    "its engine died": RayTaskError("call", "trace", EngineDiedError("CUDA error")),
    "it failed otherwise": RayTaskError("call", "trace", AssertionError("Memory usage increased after sleeping.")),
}
CALLS = ["run_groups", "update_weights", "pause", "commit_received", "probe", "sleep", "wake", "stats"]


async def whole_step(processes: Processes, version: int) -> None:
    """Every call that a run makes of its engines."""
    assert len(await processes.pool.run(requests([2 * version, 2 * version + 1]))) == 2
    async with processes.pool.resting():
        pass
    await processes.push(version)
    await processes.pool.stats()
    await processes.pool.stalls()


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("call", CALLS)
async def test_an_engine_error_at_any_call_replaces_that_engine_and_the_run_goes_on(
    tmp_path: Path, call: str, fault: str
) -> None:
    if call == "run_groups" and fault == "it failed otherwise":
        pytest.skip("an episode's own mistake is told: no other engine would play it")
    transport = "shm" if call == "update_weights" else "nccl"
    processes = Processes(tmp_path, 2, transport=transport, sleeps=True, max_restarts=1)
    await processes.pool.ready()
    failing = processes.now(0)
    failing.fail_at[call] = FAULTS[fault]
    for version in (1, 2):
        await asyncio.wait_for(whole_step(processes, version), 5)
    await settle()
    assert failing.fail_at == {}, "the fault was never met"
    assert [len(processes.made[number]) for number in (0, 1)] == [2, 1]
    assert [processes.now(number).version for number in (0, 1)] == [2, 2]
    await asyncio.wait_for(whole_step(processes, 3), 5)
    assert processes.now(0).played != []
    processes.pool.stop_starting()


async def test_an_engine_that_fails_with_its_first_weights_is_replaced(tmp_path: Path) -> None:
    processes = Processes(tmp_path, 2, max_restarts=1)
    processes.now(0).fail_at["update_weights"] = FAULTS["its engine died"]
    await processes.push(1)
    await processes.pool.run(requests([1, 2]))
    await settle()
    assert [processes.now(number).version for number in (0, 1)] == [1, 1]
    assert [len(made) for made in processes.made.values()] == [2, 1]


async def test_a_status_that_fails_is_told_to_the_watchdog_and_ends_nothing(tmp_path: Path) -> None:
    processes = Processes(tmp_path, 1)
    await processes.pool.ready()
    processes.now(0).fail_at["status"] = RayTaskError("call", "trace", RuntimeError("odd"))
    [stall] = await processes.pool.stalls()
    assert (stall.seconds, stall.text.startswith("it cannot say")) == (0.0, True)


async def test_a_users_mistake_at_a_call_to_all_is_told(tmp_path: Path) -> None:
    processes = Processes(tmp_path, 1, max_restarts=1)
    await processes.pool.ready()
    processes.now(0).fail_at["update_weights"] = RayTaskError("call", "trace", UserError("write 1 or more"))
    with pytest.raises(UserError, match="write 1"):
        await processes.push(1)


async def test_engines_that_share_gpus_sleep_in_the_learners_turn_alone(tmp_path: Path) -> None:
    processes = Processes(tmp_path, 2, sleeps=True)
    async with processes.pool.resting():
        assert processes.now(0).asleep
        assert processes.now(1).asleep
        assert await processes.pool.stalls() == []
    assert not processes.now(0).asleep
    await processes.push(1)
    await processes.pool.run(requests([1, 2]))


async def test_engines_with_gpus_of_their_own_never_sleep(tmp_path: Path) -> None:
    processes = Processes(tmp_path, 1)
    async with processes.pool.resting():
        assert not processes.now(0).asleep


async def test_a_worker_that_died_in_the_learners_turn_starts_after_it(tmp_path: Path) -> None:
    processes = Processes(tmp_path, 2, sleeps=True, max_restarts=1)
    async with processes.pool.resting():
        processes.now(0).die()
        await settle()
    assert len(processes.made[0]) == 1
    await processes.push(1)
    await processes.pool.run(requests(range(4)))
    await settle()
    assert len(processes.made[0]) == 2


async def test_a_worker_that_is_starting_again_is_waited_for_before_engines_sleep(tmp_path: Path) -> None:
    processes = Processes(tmp_path, 2, sleeps=True, max_restarts=1)
    await processes.pool.ready()
    processes.now(0).die()
    await processes.pool.run(requests(range(4)))
    async with processes.pool.resting():
        assert [processes.now(number).asleep for number in (0, 1)] == [True, True]
    assert len(processes.made[0]) == 2


async def test_the_watchdog_is_told_of_a_worker_that_the_learners_turn_waits_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes = Processes(tmp_path, 2, sleeps=True, max_restarts=1)
    await processes.pool.ready()
    opens = asyncio.Event()
    monkeypatch.setattr(FakeWorker, "do_open", lambda self: opens.wait())
    processes.now(0).die()
    await processes.pool.run(requests(range(4)))

    async def learn() -> None:
        async with processes.pool.resting():
            assert processes.now(0).asleep

    turn = asyncio.create_task(learn())
    await settle()
    starting, playing = await processes.pool.stalls()
    assert (starting.who, playing.who) == ("rollout_0", "rollout_1")
    assert starting.text.startswith("it is starting (restart 1, log: ")
    assert (starting.seconds > 0, playing.seconds) == (True, 0.0)
    opens.set()
    await turn
    assert not any("starting" in stall.text for stall in await processes.pool.stalls())


@pytest.mark.parametrize("call", ["sleep", "wake", "update_weights", "probe"])
async def test_the_watchdog_is_told_of_a_call_to_all_that_an_engine_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    processes = Processes(tmp_path, 2, sleeps=True)
    await processes.pool.ready()
    answers = asyncio.Event()
    kept = getattr(FakeWorker, f"do_{call}")

    async def hangs(self: FakeWorker, *args: Any) -> Any:
        if self.number == 1:
            await answers.wait()
        return await kept(self, *args)

    monkeypatch.setattr(FakeWorker, f"do_{call}", hangs)

    async def turn() -> None:
        async with processes.pool.resting():
            pass
        await processes.push(1)

    under_way = asyncio.create_task(turn())
    for _ in range(4):
        await settle()
    stalls = {stall.who: stall for stall in await processes.pool.stalls()}
    assert stalls["rollout_1"].text.startswith(f"the run waits for {call} (log: ")
    assert stalls["rollout_1"].seconds > 0
    answers.set()
    await under_way
    assert [stall.seconds for stall in await processes.pool.stalls()] == [0.0, 0.0]


async def test_the_watchdog_is_told_what_each_worker_waits_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("verl.cluster.replica.STATUS_TIMEOUT_S", 0.01)
    processes = Processes(tmp_path, 3)
    await processes.pool.ready()
    processes.now(0).go.clear()
    processes.now(1).silent = True
    processes.now(2).die()
    waiting, silent, dead = await processes.pool.stalls()
    assert (waiting.who, waiting.seconds) == ("rollout_0", 40.0)
    assert "2 episodes wait for the retriever, the longest for 40 s, groups 5" in waiting.text
    assert silent.text.startswith("it does not answer")
    assert (dead.seconds, dead.text) == (0.0, "it died")


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), workers=st.integers(1, 4))
def test_whoever_dies_and_whenever_every_group_comes_back_once(
    tmp_path_factory: pytest.TempPathFactory, seed: int, workers: int
) -> None:
    rng = random.Random(seed)

    async def life() -> None:
        processes = Processes(tmp_path_factory.mktemp("pool"), workers, max_restarts=10_000)
        await processes.pool.ready()

        async def kill() -> None:
            for _ in range(20):
                for _ in range(rng.randrange(8)):
                    await asyncio.sleep(0)
                processes.now(rng.randrange(workers)).die()

        killer = asyncio.create_task(kill())
        for step in range(6):
            numbers = range(step * 5, step * 5 + 5)
            runs = [processes.pool.run(requests([number], samples=rng.randrange(1, 4))) for number in numbers]
            groups = await asyncio.wait_for(asyncio.gather(*runs), 20)
            assert [group.number for [group] in groups] == list(numbers)
            await processes.push(step + 1)
        await killer
        for process in (process for made in processes.made.values() for process in made):
            for numbers_of_call, version in zip(process.calls, process.versions, strict=True):
                assert {version or 0} == {number // 5 for number in numbers_of_call}
        processes.pool.stop_starting()

    asyncio.run(life())
