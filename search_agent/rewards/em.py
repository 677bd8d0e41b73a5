"""Exact match of the answer, and nothing else."""

from __future__ import annotations

from search_agent.rewards.parts import NoSettings as Config
from search_agent.rewards.parts import reward_by

build = reward_by("em")

__all__ = ["Config", "build"]
