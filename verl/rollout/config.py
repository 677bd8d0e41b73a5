"""The settings of the rollout stage. No torch: a wrong value is reported at once."""

from __future__ import annotations

from dataclasses import dataclass, field

from verl.errors import above, at_least
from verl.rollout.engine_config import EngineConfig
from verl.rollout.interfaces import Sampling


@dataclass(frozen=True)
class RolloutConfig:
    """How episodes are played: by how many workers, and how tokens are drawn."""

    workers: int = 1
    """Rollout workers, each a process with one engine. One per GPU (or per tensor-parallel group); one on a laptop."""
    temperature: float = 1.0
    """Sampling temperature of training episodes, above 0. At 1 the policy that samples is the one that is trained."""
    top_p: float = 1.0
    """Nucleus of training episodes. Below 1, rollout and trainer log-probs are of different distributions."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """The vLLM engine of each worker."""
    start_timeout_s: float = 600.0
    """Seconds until every worker must be ready; a large model loads for minutes, a tiny one for seconds."""

    def __post_init__(self) -> None:
        at_least(self, 1, "workers")
        above(self, 0, "start_timeout_s", "temperature")
        above(self, 0, "top_p", most=1)

    @property
    def sampling(self) -> Sampling:
        """How training episodes draw tokens."""
        return Sampling(temperature=self.temperature, top_p=self.top_p)
