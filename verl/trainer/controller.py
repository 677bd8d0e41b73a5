"""The run, read from top to bottom: warm up, measure, reinforce, measure again.

    tasks -> ROLLOUT -> SCORE -> ASSIGN -> LOSS -> weights back to rollout

The controller moves groups between the rollout pool and the learner and decides what happens next; it computes nothing
that grows with the model. The same loop is synchronous and asynchronous: the group buffer alone decides how far
rollout may run ahead.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from verl.cluster.learners import LearnerGroup
from verl.cluster.pool import RolloutPool
from verl.cluster.shares import BusyShares, busy_seconds
from verl.data.samples import TrainingSample
from verl.data.tasks import Task
from verl.learner.phase import Phase
from verl.rollout.episodes import episodes_of
from verl.rollout.groups import Group
from verl.rollout.interfaces import Sampling
from verl.sync.manager import WeightManager
from verl.tracking import Tracker
from verl.trainer.alarms import watch
from verl.trainer.assign import Assigner
from verl.trainer.background import Background
from verl.trainer.buffer import GroupBuffer
from verl.trainer.clock import StepClock
from verl.trainer.config import EvaluationConfig, TrainerConfig, WarmupConfig
from verl.trainer.evaluator import Describe, Evaluator, Observe, check_alive, chosen_score
from verl.trainer.gold import GoldScorer
from verl.trainer.ledger import Ledger
from verl.trainer.mixture import mixed
from verl.trainer.phases import reinforcement_phase
from verl.trainer.producer import GroupProducer
from verl.trainer.refill import Refill
from verl.trainer.run_folder import RunFolder
from verl.trainer.saver import Saver
from verl.trainer.shaping import Shaping
from verl.trainer.state import Best, LoopState
from verl.trainer.summary import longest_wait_s, summarize
from verl.trainer.warmup import warm_up


@dataclass(frozen=True)
class Settings:
    """The parts of a run's configuration that the loop itself reads."""

    seed: int
    warmup: WarmupConfig
    trainer: TrainerConfig
    evaluation: EvaluationConfig
    sampling: Sampling
    updates_per_batch: int
    """Optimizer steps that the learner takes on one batch."""
    max_policy_tokens: int
    """The most tokens that an episode may generate."""


@dataclass(frozen=True)
class RunData:
    """What the run trains on and is measured on."""

    train: Sequence[Task]
    dev: Sequence[Task]
    test: Sequence[Task]
    traces: Sequence[TrainingSample]
    """What the warm-up learns from, and what is mixed into steps; empty where neither is asked for."""


class Controller:
    """One run over a learner and a rollout pool that are ready."""

    def __init__(
        self,
        settings: Settings,
        data: RunData,
        folder: RunFolder,
        learners: LearnerGroup,
        pool: RolloutPool,
        sync: WeightManager,
        tracker: Tracker,
        describe: Describe,
        gold: GoldScorer | None = None,
        observe: Observe | None = None,
    ) -> None:
        """``gold`` measures what ``trainer.gold_logprob`` asks for; ``observe`` adds to the metrics of each step."""
        self._settings = settings
        self._observe = observe
        self._data = data
        self._folder = folder
        self._learners = learners
        self._pool = pool
        self._sync = sync
        self._tracker = tracker
        self._ledger = Ledger(folder.path)
        trainer = settings.trainer
        self._saver = Saver(folder, learners, keep=trainer.keep_checkpoints, background=trainer.save_in_background)
        self._evaluator = Evaluator(pool, describe, settings.evaluation.decodings)
        config, sampling = settings.trainer, settings.sampling
        shaping = Shaping(config.overlong, settings.max_policy_tokens, config.turn_credit, config.budget)
        self._refill = Refill(pool, data.train, config, shaping, sampling, settings.seed)
        self._assigner = Assigner(learners, config, shaping, sampling.temperature, gold)
        self._writing = Background()
        self.state = LoopState()
        self._shares = BusyShares()
        self._last_step_end = time.monotonic()

    async def run(self) -> dict[str, Any]:
        """Everything from where the run folder stands to the summary."""
        await self._resume()
        if self._supervised_only:
            await self._measure_before()
        if self.state.phase == "warmup":
            with self.state.timed("warmup"):
                async with self._pool.resting():
                    await self._warm_up()
        if self._supervised_only:
            await self._take_warm_up()
        else:
            await self._measure_before()
            await self._train()
        self._ledger.close()
        await self._writing.settle()
        await self._saver.settle(wait=True)
        await self._measure("after")
        return {**self._summary(), "weights_hash": await self._learners.weights_hash()}

    async def _measure_before(self) -> None:
        with self.state.timed("engine_start"):
            await self._pool.ready()
        await self._measure("before")

    # -- warm-up --

    @property
    def _supervised_only(self) -> bool:
        """Whether the warm-up is all there is; it is measured before and after then."""
        return not self._settings.trainer.steps

    @property
    def _phase(self) -> Phase:
        """Reinforcement, as the learner is told of it."""
        return reinforcement_phase(self._settings.trainer, self._settings.updates_per_batch)

    @property
    def _version(self) -> int:
        """Of the weights: the steps of reinforcement, and one for a warm-up that stands for them."""
        return self.state.step if not self._supervised_only else int(self.state.phase == "train")

    async def _warm_up(self) -> None:
        settings, state = self._settings, self.state
        if settings.warmup.steps:
            await warm_up(
                settings.warmup,
                self._data.traces,
                self._learners,
                self._tracker,
                state,
                seed=settings.seed,
                broken_off=self._folder.resumable()[-1] if state.step else None,
                check=self._pool.check,
                save=partial(self._save, hugging_face=False),
            )
        state.phase, state.step = "train", 0
        if not self._supervised_only:
            await self._learners.begin_phase(self._phase)
        await self._save(hugging_face=True)

    async def _take_warm_up(self) -> None:
        """What a supervised run comes to: its last weights."""
        if "best_dev" in self.state.best:
            return
        await self._sync.push(self._version)
        with self.state.timed("evaluation"):
            self._keep_best("best_dev", await self._evaluate_dev())
        await self._save(hugging_face=True)

    # -- reinforcement --

    async def _train(self) -> None:
        settings, state = self._settings, self.state
        config = settings.trainer
        await self._sync.push(state.step)
        if state.step == 0:
            with state.timed("evaluation"):
                await self._evaluate_dev()  # where the curves start; nothing is chosen by it
        self._last_step_end = time.monotonic()
        self._shares.read(await busy_seconds(self._learners, self._pool))
        async with GroupProducer(self._pool, self._data.train, config, settings.sampling, settings.seed) as producer:
            producer.resume(state.step, state.outstanding, state.next_group)
            while state.step < config.steps:
                with state.timed("reinforcement"):
                    groups = await producer.next_groups()
                    await self._step(groups, producer.buffer)
                await self._after_step()

    async def _step(self, groups: list[Group], buffer: GroupBuffer[Group]) -> None:
        config, state = self._settings.trainer, self.state
        clock = StepClock(self._last_step_end)
        check_alive(groups)
        groups, refilled = await self._refill.complete(groups, state.step, state.budget_price)
        metrics = {**summarize(groups), **refilled, "seconds/rollout": clock.lap()}
        metrics["seconds/longest_wait"] = longest_wait_s(groups)
        metrics |= self._observe(groups) if self._observe else {}
        async with self._pool.resting():
            samples, assigned = await self._assigner.samples(groups, state)
            metrics |= assigned
            if samples:
                samples = mixed(samples, self._data.traces, config, seed=self._settings.seed, step=state.step)
                if config.fresh_optimizer:
                    await self._learners.begin_phase(self._phase)
                metrics |= await self._learners.update(samples, self._settings.sampling.temperature)
        state.aborted += int(metrics["aborted"])
        state.logprob_diff_max = max(state.logprob_diff_max, metrics.get("logprob_diff_max", 0.0))
        metrics |= watch(metrics, state, config.alarms)
        metrics["seconds/learn"] = clock.lap()
        buffer.advance()
        state.step = step = buffer.version
        await self._writing.begin(  # compressed while the weights travel and the next step is played
            lambda: self._folder.write_trajectories(
                "train", step, episodes_of(groups, "train"), keep=config.keep_trajectory_steps
            )
        )
        await self._sync.push(state.step)
        metrics["seconds/sync"] = clock.lap()
        metrics["seconds/step"] = clock.total()
        metrics |= self._shares.read(await busy_seconds(self._learners, self._pool))
        metrics["tokens_per_s"] = metrics["policy_tokens"] * metrics["n"] / metrics["seconds/step"]
        state.recent_rewards.append(metrics["reward"])
        state.outstanding, state.next_group = buffer.outstanding(), buffer.next_number
        self._tracker.log(self._global_step(), metrics)
        self._ledger.record(state.step, groups)
        self._last_step_end = time.monotonic()

    async def _after_step(self) -> None:
        config, state = self._settings.trainer, self.state
        await self._saver.settle(wait=False)
        last = state.step == config.steps
        evaluate = last or state.step % self._settings.evaluation.every_steps == 0
        if evaluate:
            with state.timed("evaluation"):
                score = await self._evaluate_dev()
            self._keep_best("best_dev", score)
            self._keep_best("best_reward", sum(state.recent_rewards) / len(state.recent_rewards))
            state.recent_rewards = []
        if evaluate or state.step % config.save_every_steps == 0:
            with state.timed("checkpoints"):
                await self._save(hugging_face=evaluate)
        self._last_step_end = time.monotonic()

    # -- measuring --

    async def _evaluate_dev(self) -> float:
        """Evaluate on dev and log it; returns what checkpoints are chosen by."""
        evaluation, state = self._settings.evaluation, self.state
        tasks = self._data.dev[: evaluation.dev_tasks]
        results = await self._evaluator.measure(tasks, "dev", "dev", state.step)
        metrics = {
            f"dev/{name}/{key}": float(value)
            for name, result in results.items()
            for key, value in result.items()
            if isinstance(value, int | float)
        }
        self._tracker.log(self._global_step(), metrics)
        return chosen_score(results, evaluation)

    def _keep_best(self, name: str, score: float) -> None:
        best = self.state.best.get(name)
        if best is None or score >= best.score:
            self.state.best[name] = Best(score, self.state.step)

    async def _measure(self, when: str) -> None:
        """Evaluate on test and keep the result in the run folder: once a run."""
        if self._folder.read_json(f"{when}.json") is not None:
            return
        with self.state.timed(when):
            if when == "after":
                await self._sync.push_saved(self._folder.path / "best_dev", self._version)
            else:
                await self._sync.push(self._version)
            tasks = self._data.test[: self._settings.evaluation.test_tasks]
            result = await self._evaluator.measure(tasks, "test", f"test-{when}", 0, keep_in=self._folder)
        self._folder.write_json(f"{when}.json", result)

    # -- saving and resuming --

    async def _save(self, *, hugging_face: bool) -> None:
        await self._writing.settle()  # the episodes of every step that a checkpoint holds are on disk
        await self._saver.save(self.state, self._global_step(), hugging_face=hugging_face)

    async def _resume(self) -> None:
        checkpoints = self._folder.resumable()
        if not checkpoints:
            return
        loop = self._folder.read_json(str(checkpoints[-1].relative_to(self._folder.path) / "loop.json"))
        assert loop is not None
        self.state = LoopState.from_json(loop)
        for name, best in list(self.state.best.items()):
            checkpoint = self._folder.checkpoint(self._settings.warmup.steps + best.step)
            if (checkpoint / "hf").is_dir():
                self._folder.link(name, checkpoint)
            else:  # a newer best had taken its place, in a checkpoint that was damaged since
                del self.state.best[name]
        if self.state.phase == "train":
            await self._learners.load(checkpoints[-1], batches=self._phase.batches)  # it may have grown

    def _global_step(self) -> int:
        in_train = self.state.phase == "train"
        return self.state.step + (self._settings.warmup.steps if in_train else 0)

    def _summary(self) -> dict[str, Any]:
        state = self.state
        return {
            "before": self._folder.read_json("before.json"),
            "after": self._folder.read_json("after.json"),
            "seconds": {stage: round(seconds, 2) for stage, seconds in state.seconds.items()},
            "logprob_diff_max": state.logprob_diff_max,
            "steps": state.step,
            "warmup_steps": self._settings.warmup.steps,
            "aborted": state.aborted,
            "best": {name: {"score": best.score, "step": best.step} for name, best in state.best.items()},
        }
