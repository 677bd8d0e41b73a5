"""A user's own reward function runs in a process of its own with a deadline.

A reward that raises, hangs, dies or returns NaN is a UserError that names the plug-in, the task and the place; it never
takes the run's own process with it, and it never becomes a silent zero. One that raises InfrastructureError, because a
service it asks does not answer, aborts the one episode. Another deadline, and more processes:

    reward:
      plugin: search_agent.rewards.pool
      deadline_s: 60
      reward: {plugin: my_package.my_reward}
"""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from queue import LifoQueue
from typing import Any

from search_agent.protocols.base import SearchProtocol
from search_agent.rewards.checked import checked, describe, name_scoring
from verl.config.build import Plugin
from verl.data.tasks import Task
from verl.errors import InfrastructureError, UserError, above, at_least
from verl.rollout.interfaces import RewardFunction, Score
from verl.trajectory import Trajectory


@dataclass(frozen=True)
class Config:
    """Settings of the pool."""

    reward: Plugin
    """The reward plug-in that is run in the pool."""
    workers: int = 1
    """Processes for each rollout worker, and for re-scoring (processes). 1: an episode is scored in milliseconds."""
    deadline_s: float = 10.0
    """How long one trajectory may take to be scored (seconds). 10: room for a slow check, and a hang is found."""
    start_deadline_s: float = 60.0
    """How long a process may take to import the plug-in and build it (seconds)."""

    def __post_init__(self) -> None:
        at_least(self, 1, "workers")
        above(self, 0, "deadline_s", "start_deadline_s")


class RewardPool:
    """Implements ``verl.rollout.interfaces.RewardFunction``; ``score_all`` and ``score_aside`` use all processes."""

    def __init__(self, config: Config, protocol: SearchProtocol) -> None:
        self._workers = [_Worker(config, protocol) for _ in range(config.workers)]
        self._idle: LifoQueue[_Worker] = LifoQueue()  # the last one used again first: its process is up
        for worker in reversed(self._workers):
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(config.workers, thread_name_prefix="reward")

    def __call__(self, task: Task, trajectory: Trajectory) -> Score:
        """Score one trajectory. Raises UserError if the plug-in fails; InfrastructureError if it says so itself."""
        worker = self._idle.get()
        try:
            return worker.score(task, trajectory)
        finally:
            self._idle.put(worker)

    def score_all(self, pairs: Iterable[tuple[Task, Trajectory]]) -> list[Score]:
        """Score many, in order, as many at a time as there are processes."""
        return list(self._threads.map(lambda pair: self(*pair), pairs))

    async def score_aside(self, task: Task, trajectory: Trajectory) -> Score:
        """Score one while the event loop serves others: a reward that hangs holds up its own episode alone."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self, task, trajectory)

    def close(self) -> None:
        """End the processes; who still waits for a score gets a UserError."""
        for worker in self._workers:
            worker.kill()
        self._threads.shutdown(cancel_futures=True)
        for worker in self._workers:
            worker.stop()


def pool_config(reward: Plugin) -> Config | None:
    """The pool that a reward runs in, where it can hold up nothing; None: one of ours runs where it is called."""
    if isinstance(reward.config, Config):
        return reward.config
    ours = reward.module.startswith("search_agent.rewards.") and not getattr(reward.config, "runs_foreign_code", False)
    return None if ours else Config(reward)


def reward_function(reward: Plugin, protocol: SearchProtocol) -> RewardFunction:
    """Make a reward, in its pool if it has one."""
    config = pool_config(reward)
    return build(config, protocol) if config else reward.build(protocol)  # type: ignore[no-any-return]


def build(config: Config, protocol: SearchProtocol) -> RewardPool:
    """Make the pool; its processes start with the first trajectory."""
    return RewardPool(config, protocol)


class _Worker:
    """One process, started when it is needed and again after it had to be killed."""

    def __init__(self, config: Config, protocol: SearchProtocol) -> None:
        self._config, self._protocol = config, protocol
        self._process: multiprocessing.process.BaseProcess | None = None
        self._connection: Connection | None = None

    def score(self, task: Task, trajectory: Trajectory) -> Score:
        what = name_scoring(self._config.reward, task, trajectory)
        connection = self._connection or self._start()
        message = (task, trajectory.to_record())
        return checked(self._exchange(connection, message, self._config.deadline_s, what), what)

    def kill(self) -> None:
        """From another thread than the one that may wait for the process; that one then finds it dead."""
        if (process := self._process) is not None:
            process.kill()

    def stop(self) -> None:
        if self._process is not None and self._connection is not None:
            self._connection.close()
            self._process.kill()
            self._process.join()
        self._process = self._connection = None

    def _start(self) -> Connection:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, self._config.reward, self._protocol), name="reward", daemon=True
        )
        self._process.start()
        theirs.close()
        what = f"reward {self._config.reward.module}: start"
        self._exchange(self._connection, None, self._config.start_deadline_s, what)
        return self._connection

    def _exchange(self, connection: Connection, message: object, deadline_s: float, what: str) -> Any:
        """The answer to ``message``. Raises UserError unless it comes in time; a failure as what it is."""
        try:
            connection.send(message)
            if not connection.poll(deadline_s):
                self.stop()
                raise UserError(f"{what}: no result after {deadline_s:g} s: it hangs, or needs a longer deadline_s")
            failure, value = connection.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise UserError(f"{what}: its process died (exit code {self._exit_code()})") from None
        if failure is not None:
            raise failure(f"{what}: {value}")
        return value

    def _exit_code(self) -> int | None:
        """How the process ended; forgets it, so that the next trajectory starts another."""
        process = self._process
        if process is not None:
            process.join(timeout=1)
        code = process.exitcode if process is not None else None
        self.stop()
        return code


def _serve(connection: Connection, reward: Plugin, protocol: SearchProtocol) -> None:
    """The process: answer every message, the first by building the reward function, until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    function: RewardFunction | None = None
    while True:
        try:
            message = connection.recv()
        except EOFError:
            return
        try:
            if message is None:
                function, value = reward.build(protocol), None
            elif function is None:
                raise RuntimeError("it could not be built")
            else:
                value = function(message[0], Trajectory.from_record(message[1]))
            answer: tuple[type[Exception] | None, object] = (None, value)
        except InfrastructureError as error:
            answer = (InfrastructureError, describe(error))
        except Exception as error:
            answer = (UserError, describe(error))
        connection.send(answer)
