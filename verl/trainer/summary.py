"""Numbers from groups of episodes: means of the reward's parts, counts of outcomes, lengths."""

from __future__ import annotations

from collections.abc import Sequence

from verl.rollout.groups import Group
from verl.trajectory import Trajectory

RESERVED = frozenset(
    [
        "n",
        "aborted",
        "truncated",
        "greedy_aborted",
        "greedy_reward",
        "reward",
        "turns",
        "policy_tokens",
        "policy_tokens_max",
        "tokens",
        "calls",
        "empty_calls",
    ]
)
"""What ``summarize`` itself counts: no part of a reward may have such a name."""


def summarize(groups: Sequence[Group]) -> dict[str, float]:
    """Means over usable episodes (``reward``, ``turns``, lengths; each reward part over those that have it), counts
    over all of them, and the length of the longest. No times: episodes played again have to give the same."""
    everyone = [trajectory for group in groups for trajectory in group.trajectories]
    usable = [trajectory for group in groups for trajectory in group.usable]
    result = {
        "n": float(len(usable)),
        "aborted": float(len(everyone) - len(usable)),
        "truncated": float(sum(trajectory.outcome == "truncated" for trajectory in usable)),
    }
    greedy = [group.greedy for group in groups if group.greedy is not None]
    if greedy:
        scored = [episode.reward for episode in greedy if episode.reward is not None]
        result["greedy_aborted"] = float(len(greedy) - len(scored))
        result["greedy_reward"] = sum(scored) / max(1, len(scored))
    if not usable:
        return result
    parts: dict[str, list[float]] = {}
    for trajectory in usable:
        for name, value in trajectory.reward_parts.items():
            parts.setdefault(name, []).append(value)
    result = {**{name: sum(values) / len(values) for name, values in parts.items()}, **result}
    result["reward"] = sum(trajectory.reward or 0.0 for trajectory in usable) / len(usable)
    result["turns"] = sum(trajectory.num_turns for trajectory in usable) / len(usable)
    result["policy_tokens"] = sum(trajectory.num_policy_tokens for trajectory in usable) / len(usable)
    result["policy_tokens_max"] = float(max(trajectory.num_policy_tokens for trajectory in usable))
    result["tokens"] = sum(len(trajectory) for trajectory in usable) / len(usable)
    calls = [call for trajectory in usable for call in trajectory.calls]
    result["calls"] = len(calls) / len(usable)
    result["empty_calls"] = sum(not (call.results or call.facts) for call in calls) / max(1, len(calls))
    return result


def longest_wait_s(groups: Sequence[Group]) -> float:
    """What the usable episode that waited the most for its calls waited for all of them (s)."""
    return max((_wait_s(trajectory) for group in groups for trajectory in group.usable), default=0.0)


def _wait_s(trajectory: Trajectory) -> float:
    """What its calls took; those of one observation are made at the same time."""
    return sum(max((call.latency_s for call in segment.calls), default=0.0) for segment in trajectory.segments)
