"""What every arm plays: tasks, and the agent around a policy that always searches."""

from __future__ import annotations

from pathlib import Path

from bench.rollout import model as policy
from bench.rollout.protocol import Config as ProtocolConfig
from bench.rollout.retriever import PASSAGES
from search_agent.agent import AgentSpec
from search_agent.environment import Config as EnvironmentConfig
from search_agent.retrieval.config import ClientConfig
from search_agent.rewards.em import Config as RewardConfig
from verl.config.build import Plugin
from verl.data.tasks import Task
from verl.rollout.engine_config import EngineConfig
from verl.rollout.groups import GroupRequest
from verl.rollout.interfaces import Sampling

TURNS, OBSERVATION_TOKENS, GROUP = 4, 500, 8
CONTEXT = 4096
MAX_TURN_TOKENS = 256
MAX_REQUESTS = 128


def engine_config(*, prefix_caching: bool) -> EngineConfig:
    """One engine on one core."""
    return EngineConfig(
        max_context_tokens=CONTEXT,
        max_concurrent_requests=MAX_REQUESTS,
        max_tokens_per_step=8192,
        kv_cache_gib=1.0,
        threads=1,
        prefix_caching=prefix_caching,
    )


def agent_spec(folder: Path, url: str) -> AgentSpec:
    """Search turns, then the last turn, which may not search."""
    from transformers import AutoTokenizer

    stop = policy.stop_string(AutoTokenizer.from_pretrained(folder))
    return AgentSpec(
        protocol=Plugin("bench.rollout.protocol", ProtocolConfig(stop)),
        environment=Plugin(
            "search_agent.environment",
            EnvironmentConfig(
                max_turns=TURNS,
                max_tokens_per_turn=MAX_TURN_TOKENS,
                max_observation_tokens=OBSERVATION_TOKENS + 50,
                top_k=PASSAGES,
            ),
        ),
        reward=Plugin("search_agent.rewards.em", RewardConfig()),
        # A retriever that takes its time for each query alone: nothing is gained by sending queries together, and
        # much is lost, for a request is as slow as its slowest query.
        client=ClientConfig(urls=(url,), max_queries_per_request=1, max_requests_in_flight=MAX_REQUESTS),
        urls={"train": (url,)},
        max_context_tokens=CONTEXT,
    )


def requests(groups: int, first: int = 0) -> list[GroupRequest]:
    """``groups`` tasks, each played ``GROUP`` times."""
    return [
        GroupRequest(
            number,
            Task(f"q{number}", f"which thing is number {number}", ("none",)),
            GROUP,
            "train",
            "train",
            0,
            Sampling(),
        )
        for number in range(first, first + groups)
    ]
