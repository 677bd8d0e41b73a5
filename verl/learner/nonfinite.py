"""What happens when a loss or a gradient is not finite: the step is skipped on all ranks and its batch is kept.

A NaN that is stepped on is in every weight one step later. After a bound of skipped steps training stops.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from verl.data.samples import TrainingSample

log = logging.getLogger(__name__)


class NonFiniteError(RuntimeError):
    """More steps in a row than allowed had a NaN or an infinity in loss or gradient."""


@dataclass(slots=True)
class SkippedSteps:
    """Counts skipped steps. Every rank holds one and sees the same numbers, so that all decide alike."""

    max_in_row: int
    folder: Path | None
    """Where the batches of skipped steps are kept (by the rank that has a folder); None keeps none."""
    skipped: int = 0
    in_row: int = 0

    def admits(self, loss: float, grad_norm: float, step: int, samples: Sequence[TrainingSample]) -> bool:
        """Whether to take the step. Raises NonFiniteError past the bound."""
        if math.isfinite(loss) and math.isfinite(grad_norm):
            self.in_row = 0
            return True
        self.skipped += 1
        self.in_row += 1
        saved = self._keep(step, samples)
        message = f"step {step}: loss {loss}, gradient norm {grad_norm}; step skipped ({self.in_row} in a row){saved}"
        if self.in_row > self.max_in_row:
            raise NonFiniteError(f"{message}; max_skipped_steps={self.max_in_row}: lower the learning rate")
        log.warning(message)
        return False

    def _keep(self, step: int, samples: Sequence[TrainingSample]) -> str:
        if self.folder is None:
            return ""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"nonfinite_step_{step}.npz"
        columns = ("token_ids", "policy_mask", "advantages", "rollout_logprobs")
        flat = {name: np.concatenate([getattr(sample, name) for sample in samples]) for name in columns}
        np.savez_compressed(path, lengths=np.array([len(sample) for sample in samples]), **flat)
        return f", batch kept in {path}"
