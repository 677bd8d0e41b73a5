"""Whether the answer holds an accepted one as a substring (the published "accuracy"), and nothing else."""

from __future__ import annotations

from search_agent.rewards.parts import NoSettings as Config
from search_agent.rewards.parts import reward_by

build = reward_by("cover")

__all__ = ["Config", "build"]
