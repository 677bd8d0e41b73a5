"""The two kinds of actors, as Ray runs them: a learner rank and a rollout worker. Each logs to a file of the run.

Heavy libraries are imported inside the actor's process, after its log is open and its threads are set.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

    from verl.algorithms.config import KlEstimator
    from verl.data.samples import TrainingSample
    from verl.learner.config import LearnerConfig
    from verl.learner.phase import Phase
    from verl.rollout.engine_config import EngineConfig
    from verl.rollout.worker import AgentFactory
    from verl.sync.gpu import Backend
    from verl.sync.update import WeightUpdate
    from verl.trajectory import FloatArray


def log_to(path: Path) -> None:
    """Send this process's stdout and stderr, also those of native code, to a file of the run."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _address() -> str:
    """This machine's address in the cluster."""
    import ray

    return str(ray.util.get_node_ip_address())


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


class LearnerActor:
    """One FSDP2 rank. Every method is called on all ranks with the same arguments; rank 0's answer is the one used."""

    def __init__(self, *, log: Path) -> None:
        log_to(log)
        self._listener: socket.socket | None = None
        self._shares_gpu = False
        self._direct: Any = None
        self._has_base = False
        self._base: WeightUpdate | None = None

    def meeting_point(self) -> tuple[str, int]:
        """Where the ranks can meet if this one is rank 0: its address in the cluster, and a port kept for it."""
        address = _address()
        self._listener = socket.create_server((address, 0))
        return address, int(self._listener.getsockname()[1])

    def start(self, place: LearnerPlace, model_path: str, config: LearnerConfig, *, seed: int, rejected: Path) -> int:
        """Meet the other ranks, then load and shard the model; answers with the rank once all that is done.

        Batches whose step was skipped, for a loss or gradient that is not finite, are kept in ``rejected``.
        """
        import torch

        from verl.learner.distributed import init_process
        from verl.learner.learner import Learner

        if place.device == "cpu":
            torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        listener, self._listener = self._listener, None
        init_process(place.rank, place.world_size, place.address, place.port, place.device, listener=listener)
        self._learner = Learner(model_path, config, seed=seed, rejected_folder=rejected)
        self._rank = place.rank
        self._shares_gpu = place.shared and place.device == "cuda"
        return self._rank

    @_gives_back
    def begin_phase(self, phase: Phase) -> None:
        """See ``Learner.begin_phase``."""
        self._has_base = False  # an earlier phase may have moved it
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
        """Gather the weights and write them where the engines of this machine can map them; rank 0 describes them.

        Of LoRA only the adapters, where it says so: the base was written before the first of them.
        """
        import torch

        write = partial(self._write, version=version, folder=folder)
        if not self._learner.sends_adapters:
            return write(self._learner.named_weights(getattr(torch, dtype)))
        if not self._has_base:
            self._base = write(self._learner.named_base(getattr(torch, dtype)), kind="base")
            self._has_base = True
        update = write(self._learner.named_adapters(), kind="adapters")
        return None if update is None else replace(update, base=self._base, scale=self._learner.adapter_scale)

    def _write(
        self, weights: Iterable[tuple[str, Tensor]], version: int, folder: str, kind: str = "weights"
    ) -> WeightUpdate | None:
        from verl.cluster.carriers import this_node
        from verl.sync.carrier import publish

        if self._rank == 0:
            return replace(publish(weights, version, folder, kind), node=this_node())
        for _ in weights:  # the other ranks take part in each gather
            pass
        return None

    @_gives_back
    def send(self, backend: Backend, dtype: str, engines: Mapping[str, Any], ranks_per_engine: int) -> int:
        """Give these engines (paused; actors by the name of each process) the weights from GPU to GPU.

        Returns the checksum of what was sent.
        """
        import torch

        from verl.cluster.transfers import DirectTransfer

        if self._direct is None:
            weights = partial(self._learner.named_weights, getattr(torch, dtype))
            self._direct = DirectTransfer(backend, weights, rank=self._rank, address=_address())
        checksum: int = self._direct.send(engines, ranks_per_engine)
        return checksum

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
        self._has_base = False
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
            super().__init__(model_path, config, agent, **options)

        async def node(self) -> str:
            """The node it is on: whose shared memory its engine can map."""
            from verl.cluster.carriers import this_node

            return this_node()

    return RolloutActor
