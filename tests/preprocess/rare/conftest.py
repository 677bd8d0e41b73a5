"""What tests of RARE's commands share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch.distributed as dist

from verl.learner.distributed import init_process


@pytest.fixture(scope="module")
def one_rank() -> Iterator[None]:
    """A process group of this process alone, as the learner wants one."""
    ours = not dist.is_initialized()
    if ours:
        init_process(0, 1, "127.0.0.1", 0)
    yield
    if ours:
        dist.destroy_process_group()
