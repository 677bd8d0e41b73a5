"""The engine adapter: generation for episodes, in-place weight updates, one thread behind an asynchronous face.

A token is sampled once and its id, log-prob and weights version travel together. An update happens between two steps;
a request that it finds in flight continues, and its tokens carry the version that sampled each.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl.errors import UserError
from verl.rollout.engine_checks import check_model
from verl.rollout.engine_config import EngineConfig
from verl.rollout.engine_thread import EngineThread
from verl.rollout.engine_vllm import GenerateRequest, VllmSteppable
from verl.rollout.interfaces import Generation, Sampling, Turn
from verl.sync import Sent, WeightUpdate

__all__ = ["EngineConfig", "EngineStats", "GenerateRequest", "VllmEngine"]


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A reading of the engine; counts are totals since it was built."""

    running: int
    """Requests in the current batch."""
    waiting: int
    """Requests queued behind it."""
    generated_tokens: int
    """Of finished requests, as the next two."""
    prompt_tokens: int
    cached_prompt_tokens: int
    """Prompt tokens served by the prefix cache."""
    busy_s: float
    """Seconds inside engine steps."""


class VllmEngine:
    """Implements ``verl.rollout.interfaces.Engine``. Methods may be called from any event loop, in any number."""

    def __init__(self, model_path: str | Path, config: EngineConfig, *, seed: int, sleeps: bool = False) -> None:
        """Load the model and return when it can generate. Raises UserError on a model or limits that cannot work.

        ``sleeps``: ``sleep`` will have to give a GPU's memory back (vLLM must know it when it takes the memory).
        """
        import torch

        check_model(Path(model_path), config, on_cpu=not torch.cuda.is_available())
        self._config = config
        build = self._build(str(model_path), seed, sleeps)
        self._thread: EngineThread[GenerateRequest, Generation] = EngineThread(build)

    def _build(self, model_path: str, seed: int, sleeps: bool) -> Any:
        def build() -> VllmSteppable:
            self._vllm = VllmSteppable(model_path, self._config, seed, sleeps=sleeps)
            return self._vllm

        return build

    # -- generation --

    async def generate(self, token_ids: Sequence[int], turn: Turn, sampling: Sampling, seed: int) -> Generation:
        """Continue ``token_ids``; ``seed`` alone decides the draws, whatever else is in the batch.

        Raises UserError if prompt and ``turn.max_tokens`` exceed the context or there are images, EngineDiedError if
        the engine died.
        """
        [future] = self.generate_many([GenerateRequest(token_ids, turn, sampling, seed)])
        return await future

    def generate_many(self, requests: Sequence[GenerateRequest]) -> list[asyncio.Future[Generation]]:
        """Admit all in one go, in order, between two steps: the same list on an idle engine gives the same batches."""
        for request in requests:
            self._check_length(len(request.token_ids), request.turn.max_tokens)
        return self._thread.submit(requests)

    async def sleep(self) -> None:
        """Pause and give a GPU's memory to the learner beside it (``sleeps``); on CPU it only pauses.

        Requests keep their place and are read again. The engine has no weights from now on: it steps again once it was
        woken and the next version came.
        """
        await self._thread.pause()
        await self._thread.call(lambda: self._vllm.sleep(), fatal=True)

    async def wake(self) -> None:
        """Take the memory back, for the next version to be loaded into."""
        await self._thread.call(lambda: self._vllm.wake(), fatal=True)

    # -- weights --

    async def pause(self) -> None:
        """Return once no step runs. Requests keep their place and new ones queue up."""
        await self._thread.pause()

    async def resume(self) -> None:
        """Step again."""
        await self._thread.resume()

    async def update_weights(self, update: WeightUpdate, version: int) -> None:
        """Load new weights from a file between two steps and step on; tokens sampled afterwards carry ``version``.

        Raises EngineDiedError if the file is not what ``update`` says or holds another version, for nothing may be
        sampled from weights that nobody can name.
        """
        await self._thread.call(lambda: self._vllm.load_update(update, version), fatal=True)
        await self._thread.resume()

    async def transfer(self, method: str, arguments: dict[str, Any]) -> None:
        """One call of vLLM's weight-transfer API, between two steps (``weight_transfer: ipc`` or ``nccl``).

        ``verl.sync.gpu`` makes these calls, then ``commit_received``. The engine must be paused from the first to the
        last. A failing one ends the engine, as above.
        """
        await self._thread.call(lambda: self._vllm.transfer(method, **arguments), fatal=True)

    async def commit_received(self, version: int, sent: Sent) -> None:
        """Weights that came by ``transfer`` are whole: it steps on, and tokens sampled from now on carry ``version``.

        Raises EngineDiedError, for the engine is dead then, if it does not hold what was sent.
        """
        await self._thread.call(lambda: self._vllm.commit_received(version, sent), fatal=True)
        await self._thread.resume()

    # -- life --

    def check(self) -> None:
        """Raises EngineDiedError, with the cause, if the engine cannot generate any more."""
        self._thread.check()

    @property
    def busy_s(self) -> float:
        """Seconds inside engine steps, also of an engine that has died."""
        return self._thread.busy_s

    def stats(self) -> EngineStats:
        """Read the counters; never waits for the engine. Raises EngineDiedError if there is none any more."""
        self.check()
        running, waiting = self._vllm.queue_lengths()
        tokens = self._vllm.tokens
        return EngineStats(running, waiting, tokens.generated, tokens.prompt, tokens.cached_prompt, self._thread.busy_s)

    async def close(self) -> None:
        """End the thread and the workers; waiting calls fail. Safe to call twice."""
        await asyncio.to_thread(self._thread.close)

    def _check_length(self, prompt_tokens: int, max_tokens: int) -> None:
        limit = self._config.max_context_tokens
        if prompt_tokens == 0:
            raise UserError("a prompt of 0 tokens cannot be continued")
        if prompt_tokens + max_tokens > limit:
            raise UserError(
                f"a prompt of {prompt_tokens} tokens and {max_tokens} to generate exceed the engine's "
                f"max_context_tokens={limit}: shorten them, or raise it"
            )
