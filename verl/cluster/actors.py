"""The two kinds of actors, as Ray runs them: a learner rank and a rollout worker. Each logs to a file of the run.

Heavy libraries are imported inside the actor's process, after its log is open and its threads are set.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from verl.cluster.calls import ask_engines
from verl.cluster.processes import free_port, interface_of
from verl.cluster.ray_runtime import see_own_gpus, this_machine, this_node

if TYPE_CHECKING:
    from verl.algorithms.config import KlEstimator
    from verl.data.samples import TrainingSample
    from verl.learner.config import LearnerConfig
    from verl.learner.phase import Phase
    from verl.rollout.engine_config import EngineConfig
    from verl.rollout.worker import AgentFactory
    from verl.sync import Sent, WeightUpdate
    from verl.sync.gpu import GpuSender
    from verl.trajectory import FloatArray


def log_to(path: Path) -> None:
    """Send this process's stdout and stderr, also those of native code, to a file of the run."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _meeting_point() -> tuple[str, int]:
    """This machine's address in the cluster, and a port of it that is free."""
    address = this_machine()
    return address, free_port(address)


@dataclass(frozen=True)
class LearnerPlace:
    """Which rank this is, and where rank 0 listens."""

    rank: int
    world_size: int
    address: str
    port: int
    device: str
    shared: bool = False
    """Whether an engine uses the same GPU in turns."""
    deterministic: bool = False
    """Whether to take kernels that repeat their results, where there are such, at the price of speed."""


P = ParamSpec("P")
R = TypeVar("R")


def _gives_back(method: Callable[P, R]) -> Callable[P, R]:
    """A call after which an engine beside this rank has the memory that torch would keep for its next step."""

    @wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(*args, **kwargs)
        finally:
            actor = args[0]
            assert isinstance(actor, LearnerActor)
            if actor._shares_gpu:
                import torch

                torch.cuda.empty_cache()

    return call


def _repeatable_kernels() -> None:
    """From now on, before the GPU is first used: sums in a fixed order, in attention's backward pass among others."""
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)  # the log names what has no such kernel
    # A kernel more for each tensor, against reads of what nobody wrote.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


class LearnerActor:
    """One FSDP2 rank. Every method is called on all ranks with the same arguments; rank 0's answer is the one used."""

    def __init__(self, *, log: Path) -> None:
        log_to(log)
        see_own_gpus()
        self._listener: socket.socket | None = None
        self._shares_gpu = False
        self._sender: GpuSender | None = None

    def meeting_point(self) -> tuple[str, int]:
        """Where the ranks can meet if this one is rank 0: its address in the cluster, and a port kept for it."""
        address = this_machine()
        self._listener = socket.create_server((address, 0))
        return address, int(self._listener.getsockname()[1])

    def start(self, place: LearnerPlace, model_path: str, config: LearnerConfig, *, seed: int, rejected: Path) -> int:
        """Meet the other ranks, then load and shard the model; answers with the rank once all that is done.

        Batches whose step was skipped, for a loss or gradient that is not finite, are kept in ``rejected``.
        """
        import torch

        from verl.learner.distributed import init_process
        from verl.learner.learner import Learner
        from verl.sync.file import Publisher

        if place.deterministic and place.device == "cuda":
            _repeatable_kernels()
        if place.device == "cpu":
            torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        if interface := interface_of(this_machine()):
            # Gloo would take the address of the host's name, which on many machines is a loopback one.
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        listener, self._listener = self._listener, None
        init_process(place.rank, place.world_size, place.address, place.port, place.device, listener=listener)
        self._learner = Learner(model_path, config, seed=seed, rejected_folder=rejected)
        self._publisher = Publisher(self._learner, writes=place.rank == 0, node=this_node())
        self._rank = place.rank
        self._shares_gpu = place.shared and place.device == "cuda"
        return self._rank

    @_gives_back
    def begin_phase(self, phase: Phase) -> None:
        """See ``Learner.begin_phase``."""
        self._publisher.forget_base()  # an earlier phase may have moved it
        self._learner.begin_phase(phase)

    @_gives_back
    def update(self, samples: Sequence[TrainingSample], temperature: float) -> dict[str, float]:
        """See ``Learner.update``."""
        return self._learner.update(samples, temperature=temperature)

    @_gives_back
    def reference_kl(
        self, samples: Sequence[TrainingSample], temperature: float, estimator: KlEstimator
    ) -> list[FloatArray] | None:
        """See ``Learner.reference_kl``; rank 0 answers for all."""
        kl = self._learner.reference_kl(samples, temperature, estimator)
        return kl if self._rank == 0 else None

    @_gives_back
    def sum_logprobs(self, samples: Sequence[TrainingSample]) -> list[float] | None:
        """Log-prob of each sample's policy tokens together, at temperature 1; rank 0 answers for all."""
        scores = self._learner.logprobs(samples)
        return [float(row.sum(dtype="float64")) for row in scores] if self._rank == 0 else None

    @_gives_back
    def publish(self, version: int, dtype: str, folder: str) -> WeightUpdate | None:
        """Write the weights where the engines of this machine can map them: see ``verl.sync.file``."""
        import torch

        return self._publisher.publish(version, getattr(torch, dtype), folder)

    @_gives_back
    def send(self, transport: str, dtype: str, engines: Mapping[str, Any], ranks_per_engine: int) -> Sent:
        """Give these paused engines the weights from GPU to GPU: see ``verl.sync.gpu``."""
        import torch

        from verl.sync.gpu import GpuSender

        if self._sender is None:
            weights = partial(self._learner.named_weights, getattr(torch, dtype))
            self._sender = GpuSender(transport, weights, ask_engines, rank=self._rank, free_port=_meeting_point)
        return self._sender.send(engines, ranks_per_engine)

    @_gives_back
    def probe(self, prompts: Sequence[Sequence[int]]) -> list[tuple[int, float, float]]:
        """The most likely next token of each prompt, its log-prob, and its lead over the second: for the canary."""
        from verl.learner.probe import next_tokens

        return next_tokens(self._learner, prompts)

    @_gives_back
    def save(self, folder: str, *, hugging_face: bool, background: bool, previous: str | None) -> None:
        """Write ``learner/`` and, if asked, ``hf/`` into a folder; ``previous`` is the checkpoint before it.

        With ``background`` they are only copied now, and written while other calls are answered.
        """
        before = None if previous is None else Path(previous) / "learner"
        self._learner.save_checkpoint(Path(folder) / "learner", background=background, previous=before)
        if hugging_face:
            self._learner.save_hf(Path(folder) / "hf", background=background)

    @_gives_back
    def weights_hash(self) -> str:
        """See ``Learner.weights_hash``."""
        return self._learner.weights_hash()

    def saved(self, *, wait: bool) -> bool:
        """Whether all that was saved is written; ``wait`` until it is. Raises what kept it from being."""
        if self._learner.saving and not wait:
            return False
        self._learner.wait_saved()
        return True

    @_gives_back
    def load(self, folder: str, batches: int | None = None) -> None:
        """Continue from what ``save`` wrote; see ``Learner.load_checkpoint``."""
        self._publisher.forget_base()
        self._learner.load_checkpoint(Path(folder) / "learner", batches)


def make_rollout_actor_class() -> type:
    """The rollout worker as an actor class. A function, because Ray needs the class whose methods are async."""
    from verl.rollout.worker import RolloutWorker

    class RolloutActor(RolloutWorker):
        """One engine and its episodes in a process of their own."""

        def __init__(
            self, model_path: str, config: EngineConfig, agent: AgentFactory, *, log: Path, **options: Any
        ) -> None:
            log_to(log)
            see_own_gpus()
            super().__init__(model_path, config, agent, **options)

        async def node(self) -> str:
            """The node it is on: whose shared memory its engine can map."""
            return this_node()

    return RolloutActor
