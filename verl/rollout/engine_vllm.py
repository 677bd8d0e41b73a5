"""vLLM's ``LLMEngine`` as a thing that steps: requests and results of ours on one side, vLLM's objects on the other.

Everything here runs on the engine's one thread (``engine_thread``). vLLM is imported when the engine is built, after
the environment is set; importing this module costs nothing.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl.data.pictures import Pictures, open_picture, short
from verl.errors import InfrastructureError, UserError
from verl.rollout.engine_checks import check_architecture
from verl.rollout.engine_config import EngineConfig
from verl.rollout.engine_settings import engine_arguments, environment, sampling_arguments
from verl.rollout.interfaces import Generation, Sampling, Turn, refuse_images
from verl.rollout.open_requests import OpenRequests, TokenCounts
from verl.sync import Sent, Sums, WeightUpdate
from verl.sync.canary import ENDS, check_loaded


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """Continue these tokens."""

    token_ids: Sequence[int]
    turn: Turn
    sampling: Sampling
    seed: int


class VllmSteppable:
    """An ``engine_thread.Steppable``: vLLM's scheduler in this process, its model here or in workers."""

    def __init__(self, model_path: str, config: EngineConfig, seed: int, *, sleeps: bool = False) -> None:
        with _without_collector(), _without_llvmlite():
            self._engine = _build(model_path, config, seed, sleeps)
        self._client = self._engine.engine_core
        self._open = OpenRequests(self._engine.get_tokenizer())
        self._ended: list[tuple[str, Generation]] = []
        self._pictures = Pictures.of(model_path)
        self._shared_memory: str = self._engine.collective_rpc("shared_memory_name")[0]
        self._keeps = config.after_push == "keep"
        self._holds_base = False

    # -- Steppable --

    def add(self, key: str, request: GenerateRequest) -> None:
        """Queue a request; vLLM raises ValueError on one it cannot serve."""
        from vllm import SamplingParams

        params = SamplingParams(**sampling_arguments(request.turn, request.sampling, request.seed))
        # Where older keys and values stay, a request finds none but those of its own weights.
        salt = str(self._open.version) if self._keeps else None
        prompt, tasks = self._prompt(request, salt), self._engine.get_supported_tasks()
        self._client.add_request(self._engine.input_processor.process_inputs(key, prompt, params, tasks))
        self._open.add(key, len(request.token_ids), request.turn.stop)

    def _prompt(self, request: GenerateRequest, salt: str | None) -> Any:
        """What vLLM is given. Raises UserError on pictures that cannot be read, or that the ids do not tell of."""
        from vllm.inputs.engine import tokens_input

        if not request.turn.images:
            return tokens_input(list(request.token_ids), cache_salt=salt)
        if self._pictures is None:
            refuse_images(request.turn)
        assert self._pictures is not None
        shown = [open_picture(name) for name in request.turn.images]
        # vLLM lays out the room for each picture itself, from one token for it.
        ids = self._pictures.collapsed(request.token_ids)
        [prompt] = self._engine.renderer.render_cmpl(
            [{"prompt_token_ids": ids, "multi_modal_data": {"image": shown}, **({"cache_salt": salt} if salt else {})}]
        )
        if list(prompt["prompt_token_ids"]) != list(request.token_ids):
            raise UserError(f"image {short(request.turn.images[0])}: takes other tokens than it has in the prompt")
        return prompt

    def abort(self, keys: Sequence[str]) -> None:
        """Forget these requests."""
        self._client.abort_requests(self._open.forget(sorted(keys)))

    def has_work(self) -> bool:
        """Whether a request is unfinished, or one that ended has not been told."""
        return bool(self._open or self._ended)

    def step(self) -> list[tuple[str, Generation]]:
        """One engine step. Raises InfrastructureError if a worker process is gone, and whatever else vLLM raises."""
        if self._open:
            self._advance()
        ended, self._ended = self._ended, []
        return ended

    def _advance(self) -> None:
        try:
            outputs = self._client.get_output().outputs
        except Exception as error:
            if getattr(self._engine.model_executor, "is_failed", False):
                raise InfrastructureError("a tensor-parallel worker process of the engine died") from error
            raise
        ended, untold = self._open.take(outputs)
        self._client.abort_requests(untold)
        self._ended += ended

    def _settle(self) -> None:
        """With asynchronous scheduling a step may be in flight: take its tokens, which the weights so far made."""
        core = self._client.engine_core
        if core.batch_queue:
            core.pause_scheduler(mode="keep", clear_cache=False)
            while core.batch_queue:
                self._advance()
            core.resume_scheduler()

    def close(self) -> None:
        """Stop workers and free memory."""
        self._client.shutdown()
        # vLLM's tensor-parallel ranks on CPU leave their segments behind.
        if self._shared_memory:
            for segment in Path("/dev/shm").glob(f"{self._shared_memory}-*"):
                segment.unlink(missing_ok=True)

    # -- between steps --

    def queue_lengths(self) -> tuple[int, int]:
        """Requests ``(running, waiting)``."""
        running, waiting = self._client.engine_core.scheduler.get_request_counts()
        return running, waiting

    @property
    def tokens(self) -> TokenCounts:
        """Of the requests that ended."""
        return self._open.tokens

    def transfer(self, method: str, **arguments: Any) -> None:
        """Call one method of vLLM's weight-transfer API on every rank."""
        self._settle()
        self._engine.collective_rpc(method, kwargs=arguments)

    def load_update(self, update: WeightUpdate, version: int) -> None:
        """Load new weights in place on every rank; what is sampled from now on carries ``version``."""
        self._settle()
        self._engine.collective_rpc("load_file", kwargs={"update": update, "version": version})
        if update.base is None:  # with adapters the sum is made here
            self._check_loaded(update.sums, version, list(ENDS))
        self._holds_base = update.base is not None
        self.commit_version(version)

    def commit_received(self, version: int, sent: Sent) -> None:
        """Weights that came by ``transfer`` are ``version``. Raises InfrastructureError if they are not those sent."""
        for received in self._engine.collective_rpc("received_checksum"):
            if received == sent.checksum:
                continue
            what = f"weights version {version} arrived with checksum {received:08x}, {sent.checksum:08x} was sent"
            try:
                self._check_loaded(sent.sums, version, None)
            except InfrastructureError as error:  # which names the tensor
                raise InfrastructureError(f"{what}: {error}") from error
            raise InfrastructureError(what)
        self._check_loaded(sent.sums, version, None)
        self.commit_version(version)

    def _check_loaded(self, sent: Sums, version: int, names: list[str] | None) -> None:
        check_loaded(sent, self._engine.collective_rpc("loaded_sums", kwargs={"names": names}), version)

    def commit_version(self, version: int) -> None:
        """Label new tokens with ``version``; no later request finds keys and values that older weights made.

        To ``refresh``, requests in flight are put back and read again whole, prompt and generated tokens, with the new
        weights: their next tokens are then exactly the new policy's, given the tokens so far.
        """
        self._open.begin_version(version)
        if not self._keeps:
            self._engine.reset_prefix_cache(reset_running_requests=True)

    def sleep(self) -> None:
        """Give a GPU's memory back, weights included, for new ones come before the next step; requests are read again.

        Where adapters travel alone, what they are added to stays, in host memory.
        """
        self._settle()
        self._engine.reset_prefix_cache(reset_running_requests=True)
        self._engine.sleep(level=1 if self._holds_base else 2, mode="keep")

    def wake(self) -> None:
        """Take the memory again; it holds no weights until the next version is loaded."""
        self._engine.wake_up()


def _build(model_path: str, config: EngineConfig, seed: int, sleeps: bool) -> Any:
    import torch

    on_cpu = not torch.cuda.is_available()
    os.environ.update(environment(config, on_cpu=on_cpu))
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    torch.set_float32_matmul_precision("highest")  # as the learner has it: no TF32
    # vLLM's CPU worker replaces this function by one that does nothing.
    set_threads = torch.set_num_threads

    from vllm import EngineArgs, LLMEngine, ModelRegistry
    from vllm.config import WeightTransferConfig

    import verl.rollout.worker_extension  # noqa: F401  (registers receivers before vLLM looks them up)

    # vLLM collects garbage five times while it builds; what its import left is not looked at again.
    gc.freeze()
    check_architecture(Path(model_path), frozenset(ModelRegistry.get_supported_archs()))
    sees = Pictures.of(model_path) is not None
    arguments = engine_arguments(model_path, config, seed=seed, on_cpu=on_cpu, sleeps=sleeps, pictures=sees)
    if config.weight_transfer != "shm":  # a file is loaded by the worker's extension
        arguments["weight_transfer_config"] = WeightTransferConfig(backend=f"watched_{config.weight_transfer}")
    engine = LLMEngine.from_engine_args(EngineArgs(**arguments))
    gc.freeze()  # nor are the blocks of the cache, an object each
    if on_cpu:
        set_threads(config.threads)
        torch.set_num_threads = set_threads
    return engine


@contextmanager
def _without_llvmlite() -> Iterator[None]:
    """Keep a module of llvmlite (numba's) out of sight while an engine is built.

    vLLM then looks at every attribute of every loaded module, and one object of that module answers any name with
    something callable; vLLM takes it for a dict and fails.
    """
    name = "llvmlite.binding.ffi"
    module = sys.modules.pop(name, None)
    try:
        yield
    finally:
        if module is not None:
            sys.modules[name] = module


@contextmanager
def _without_collector() -> Iterator[None]:
    # Importing vLLM makes a million objects that stay; passes over them were a quarter of the import's time.
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
