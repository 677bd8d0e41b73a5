"""Writing while training goes on: one thread a rank, with a process group of its own for what the ranks agree on.

The caller hands over copies; the order of jobs is the same on every rank, so that their collectives meet.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta

import torch.distributed as dist

Job = Callable[[dist.ProcessGroup], None]
"""Work that may use collectives, of the given group only: the other groups are in use by training."""


_PATIENCE = timedelta(hours=6)
"""How long ranks wait for one that writes: rank 0 alone writes an exported model, to whatever disk there is."""


class BackgroundWriter:
    """Runs jobs one after another. Every rank submits the same jobs in the same order."""

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None
        self._group: dist.ProcessGroup | None = None
        self._jobs: list[Future[None]] = []

    def submit(self, job: Job) -> None:
        """Do ``job`` later. Collective at the first call, which makes the group: gloo, as it works on host memory."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._jobs.append(self._thread.submit(job, self._joined()))

    def _joined(self) -> dist.ProcessGroup:
        if self._group is None:
            self._group = dist.new_group(backend="gloo", timeout=_PATIENCE)
        assert self._group is not None
        return self._group

    def run(self, job: Job, *, background: bool) -> None:
        """Do ``job`` now, or with ``background`` later; in the same group, whose patience is long."""
        self.submit(job) if background else job(self._joined())

    @property
    def busy(self) -> bool:
        """Whether a job of this rank is unfinished."""
        return any(not job.done() for job in self._jobs)

    def wait(self) -> None:
        """Return when all jobs are done. Raises what the first of them raised."""
        jobs, self._jobs = self._jobs, []
        for job in jobs:
            job.result()
