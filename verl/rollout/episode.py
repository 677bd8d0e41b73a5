"""One episode, from prompt to outcome: the only place that joins an engine with an environment.

An episode is a coroutine. While it waits for tokens or for a search, every other episode goes on.
"""

from __future__ import annotations

from dataclasses import dataclass

from verl.data.tasks import Task
from verl.errors import InfrastructureError
from verl.rollout.interfaces import Engine, Environment, Sampling
from verl.rollout.progress import Unwatched, Watcher
from verl.seeds import derive_seed
from verl.trajectory import Trajectory


@dataclass(frozen=True, slots=True)
class EpisodeKey:
    """What an episode's random draws depend on, and nothing else does."""

    run_seed: int
    stage: str
    """``train`` or the name of an evaluation: two stages never share draws."""
    step: int
    task_id: str
    sample: int

    def turn_seed(self, turn: int) -> int:
        """The seed of the request that generates turn ``turn``."""
        return derive_seed(self.run_seed, self.stage, self.step, self.task_id, self.sample, turn)


async def run_episode(
    task: Task,
    key: EpisodeKey,
    environment: Environment,
    engine: Engine,
    sampling: Sampling,
    watcher: Watcher | None = None,
) -> Trajectory:
    """Play one episode and return its trajectory, with an outcome, not yet scored.

    An InfrastructureError (the retriever or the engine failed for good) ends it as ``aborted`` with the reason;
    any other exception is a bug and passes through.
    """
    trajectory, watcher = Trajectory(task_id=task.id, sample=key.sample), watcher or Unwatched()
    try:
        prompt = await environment.start()
        trajectory.append_prompt(prompt.token_ids, prompt.text, prompt.prefill, prompt.calls)
        trajectory.images = prompt.images
        watcher.wrote(trajectory.segments[-1])
        while (turn := environment.next_turn()) is not None:
            seed = key.turn_seed(trajectory.num_turns)
            watcher.enter("engine")
            generation = await engine.generate(trajectory.context_ids().tolist(), turn, sampling, seed)
            trajectory.append_generated(
                generation.token_ids,
                generation.text,
                generation.logprobs,
                generation.versions,
                generation.finish_reason,
            )
            watcher.enter("environment")
            watcher.wrote(trajectory.segments[-1])
            observation = await environment.observe(generation)
            if observation is not None:
                trajectory.append_observation(
                    observation.token_ids,
                    observation.text,
                    observation.calls,
                    prefill=observation.prefill,
                    last_call=observation.last_call,
                    anew=observation.anew,
                    beside=observation.beside,
                )
                watcher.wrote(trajectory.segments[-1])
    except InfrastructureError as error:
        trajectory.outcome, trajectory.reason = "aborted", f"{type(error).__name__}: {error}"
        return trajectory
    trajectory.outcome, trajectory.reason = environment.outcome()
    return trajectory
